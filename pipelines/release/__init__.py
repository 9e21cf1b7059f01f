"""Giving a version of the exported data set out. Not a stage."""
