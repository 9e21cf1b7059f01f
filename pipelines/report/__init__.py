"""One self-contained HTML page of everything that was measured."""
