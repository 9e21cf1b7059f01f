"""Methods against each other, paired by case and seed."""
