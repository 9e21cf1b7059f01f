"""Each method draws the cases."""
