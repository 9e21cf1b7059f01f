"""A page of thumbnails to look at and correct. Not a stage."""
