"""`umo serve`: scores over HTTP, for teams that do not work in Python."""
