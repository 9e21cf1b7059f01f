"""Measured pictures become reference sets; every row keeps its reason."""
