"""A judge scores what a method drew."""
