"""`make serve` and what the flows need; knows no Prefect but for its REST API."""
