"""Photographs, archives, tables and videos become shards of pictures."""
