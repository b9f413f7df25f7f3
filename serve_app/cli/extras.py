"""The commands that need more than a client, and one line where that is not installed.

``pip install video-api`` brings what the commands need that only speak HTTP with a service. All others import what a
head does, and say here which extra of the package has it.
"""

import re
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

import typer
from typer.core import TyperCommand

from serve_app.cli.terminal import UsageProblem

_DISTRIBUTION = "video-api"
#: A line of METADATA: ``ray[serve]==2.60.0; extra == "head"``.
_OF_HEAD = re.compile(r"""([\w.-]+).*;.*\bextra == ["']head["']""")


class OfHead(TyperCommand):
    """A command that needs what a head needs."""

    #: What to install for it. Any of them has all that a head needs.
    extra = "head"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What is missing here is said before what is wrong with the arguments, but ``--help`` is answered."""
        try:
            return super().parse_args(ctx, args)
        except typer.Exit:
            raise
        except Exception:
            self._require(ctx)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Raises UsageProblem where its packages are not installed."""
        self._require(ctx)
        return super().invoke(ctx)

    def _require(self, ctx: Any) -> None:
        if lacking := missing(_requirements()):
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise UsageProblem(
                f"`{ctx.command_path}` needs more than is installed here ({lacking[0]}{more} not found):"
                f" pip install '{_DISTRIBUTION}[{self.extra}]'"
            )


class OfNode(OfHead):
    """One for a machine with a GPU."""

    extra = "gpu"


class OfMachine(OfHead):
    """One that runs the whole service on one machine."""

    extra = "local"


class OfDemo(OfHead):
    """One that also makes its own inputs."""

    extra = "demo"


def missing(requirements: Iterable[str]) -> Sequence[str]:
    """What a head needs by these lines of METADATA, and is not installed."""
    return [found[1] for line in requirements if (found := _OF_HEAD.match(line)) and not _installed(found[1])]


def _requirements() -> Sequence[str]:
    try:
        return metadata.requires(_DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:
        # A source tree that was not installed: nothing says here what it needs.
        return ()


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
