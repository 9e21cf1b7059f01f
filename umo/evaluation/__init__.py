"""Is it them, and only them: cases, scores, metrics, comparisons, and what a reward could ruin."""
