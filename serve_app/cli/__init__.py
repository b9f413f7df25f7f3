"""The ``video-api`` command: calls the HTTP API of any deployment, or runs a whole one on this machine."""

from serve_app.cli.commands import app, main

__all__ = ["app", "main"]
