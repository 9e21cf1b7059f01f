"""Who is who in a heap of faces: clustering, neighbours, duplicates, thresholds, agreement."""
