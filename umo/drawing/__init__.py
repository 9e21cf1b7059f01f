"""What drawing many pictures takes: batches, files that tell what they were drawn from, photographs of users."""
