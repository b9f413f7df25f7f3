"""What runs on a GPU: one folder per model, the replica life cycle they share, and media encoding."""
