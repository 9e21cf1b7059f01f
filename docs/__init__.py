"""The documentation site: pages, and the code that writes its reference."""
