"""Kept sets get their prompts."""
