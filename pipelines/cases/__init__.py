"""What the methods draw and the judge scores."""
