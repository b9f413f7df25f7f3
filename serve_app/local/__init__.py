"""The whole service on one machine: PostgreSQL from a pip package, a local Ray cluster, the Serve application."""
