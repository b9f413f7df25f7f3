"""The commands that need more than a client, and one line where that is not installed.

The package without an extra brings what the commands need that only speak HTTP with a service. All others name the
extra that has what they import, and say so here.
"""

import re
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand

from serve_app.cli.terminal import UsageProblem

_DISTRIBUTION = "video-api"
#: A line of METADATA: ``ray[serve]==2.60.0; extra == "head"``. Name, extras of that, our extra.
_LINE = re.compile(r"""([\w.-]+)\s*(?:\[([^\]]*)\])?.*;.*\bextra == ["']([\w-]+)["']""")
#: What does as well: a machine without a desktop can't import the one, and is given the other.
_INSTEAD = {"opencv-python": "opencv-python-headless"}


class _Command(TyperCommand):
    """A command that needs what an extra brings."""

    extra: ClassVar[str]

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
        if lacking := missing(self.extra, _requirements()):
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise UsageProblem(
                f"`{ctx.command_path}` needs more than is installed here ({lacking[0]}{more} not found):"
                f" pip install '.[{self.extra}]' in a checkout of {_DISTRIBUTION}"
            )


def needing(extra: str) -> type[TyperCommand]:
    """The class of a command that needs all of this extra."""
    return type("Needing", (_Command,), {"extra": extra})


def missing(extra: str, requirements: Sequence[str]) -> Sequence[str]:
    """What the extra and those that it takes in bring by these lines of METADATA, and is not installed."""
    return [name for name in _names(extra, requirements) if not _installed(name)]


def _names(extra: str, requirements: Sequence[str]) -> Iterator[str]:
    for line in requirements:
        if (found := _LINE.match(line)) is None or found[3] != extra:
            continue
        if found[1] != _DISTRIBUTION:
            yield found[1]
            continue
        for other in (found[2] or "").split(","):
            yield from _names(other.strip(), requirements)


def _requirements() -> Sequence[str]:
    try:
        return metadata.requires(_DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:
        # A source tree that was not installed: nothing says here what it needs.
        return ()


def _installed(name: str) -> bool:
    for each in (name, _INSTEAD.get(name)):
        try:
            if each is not None and metadata.version(each):
                return True
        except metadata.PackageNotFoundError:
            pass
    return False
