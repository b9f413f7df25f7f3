"""Durable jobs. PostgreSQL is the truth; ``store.py`` is the only place that changes a job's state."""
