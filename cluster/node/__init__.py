"""A GPU machine: what only its process does."""
