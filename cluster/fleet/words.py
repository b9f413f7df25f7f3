"""What nodes and providers say, as it may be written down and shown: it goes into the books, jobs and ``/health``."""

#: Characters.
_MOST = 300


def written(text: str) -> str:
    """One line of it. PostgreSQL takes no NUL, and a machine whose end can't be written down would never be ended."""
    return "".join(each if each.isprintable() else " " for each in text[:_MOST])
