"""`make bench`: what this repository claims of speed and cost, measured; a number against a named alternative each."""
