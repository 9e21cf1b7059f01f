"""A method tunes the base on the exported sets."""
