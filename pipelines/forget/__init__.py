"""Taking a person out of every product and cache, with proof. Not a stage."""
