"""Reference sets become a data set that others can take away."""
