"""The machine that holds the cluster together: what only its process does."""
