"""How a method moves weights: an objective sends the losses of some samples backward and says what they were."""
