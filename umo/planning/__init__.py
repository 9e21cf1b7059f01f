"""Whether a training fits a card, known from configs alone."""
