"""Spans of time on the command line, the same for every option that takes one: ``90s``, ``10m``, ``1.5h``, ``30d``."""

from typing import Any

import typer

from serve_app.cli.terminal import UsageProblem

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_WORDS = {"s": "seconds", "m": "minutes", "h": "hours"}
#: Longer than anything is kept, and short enough to be added to a date.
_MOST_S = 100 * 365 * _SECONDS["d"]


def span(name: str, about: str, *, bare: str = "") -> Any:
    """An option that takes one, described by ``about``; what it gives are seconds, and so is its default.

    ``bare``: the unit of a number without one. Where there is none, such a number is refused.
    """

    def parse(given: str | float) -> float:
        return seconds(name, given, bare) if isinstance(given, str) else given

    about += f" A bare number: {_WORDS[bare]}." if bare else ""
    return typer.Option(name, parser=parse, metavar="1d", help=about, show_default=False)


def seconds(name: str, text: str, bare: str = "") -> float:
    """Raises UsageProblem, which calls it ``name``."""
    number, unit = (text[:-1], text[-1:]) if text[-1:] in _SECONDS else (text, bare)
    try:
        found = float(number) * _SECONDS[unit]
    except (ValueError, KeyError):
        found = -1.0
    # NaN is not between them either.
    if not 0 <= found <= _MOST_S:
        raise UsageProblem(f"{name} {text}: a number and s, m, h, d or w, as in 30d")
    return found
