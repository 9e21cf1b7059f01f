"""Great Expectations over every product."""
