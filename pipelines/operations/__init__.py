"""Running the graph as a service: what flows.py, release and serve are made of. None of it imports Prefect."""
