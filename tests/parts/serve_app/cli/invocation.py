"""How tests call ``video-api`` and read what it says."""

import json
from collections.abc import Callable
from typing import Any

from typer.testing import Result

#: How a program begins that is to end at Ctrl-C wherever the tests run: a shell without a terminal starts what it has
#: in the background with the signal ignored, children inherit that, and Python then leaves it so.
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
#: ``video-api`` so.
PROGRAM = f"{INTERRUPTIBLE}from serve_app.cli import main; main()"

#: Runs ``video-api`` with these arguments.
Run = Callable[..., Result]


def parsed(result: Result) -> Any:
    """stdout, which has to be JSON and nothing else."""
    return json.loads(result.stdout)
