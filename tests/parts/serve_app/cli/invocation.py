"""How tests call ``video-api`` and read what it says."""

import json
from collections.abc import Callable
from typing import Any

from typer.testing import Result

#: Runs ``video-api`` with these arguments.
Run = Callable[..., Result]


def parsed(result: Result) -> Any:
    """stdout, which has to be JSON and nothing else."""
    return json.loads(result.stdout)
