"""Faces become people, and people get their splits."""
