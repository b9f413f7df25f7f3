"""How nodes come to be: the head, GPU nodes that dial in, the mesh between them, and their weights."""
