"""A bundle for a detector from its frames alone."""
