"""Options of a head, as the command line would make them."""

from typing import Any

from cluster.head.process import HeadOptions


def options_of_head(**changes: Any) -> HeadOptions:
    """Of a head that nobody starts, unless the test does."""
    values = {"database_url": "postgresql://nobody@127.0.0.1:1/none", "http_port": 1, "mesh_port": 0}
    return HeadOptions(**{**values, "mesh_secret": b"m" * 32, "ray_token": "t", "version": "1", **changes})
