"""Pictures get their faces, embeddings and quality."""
