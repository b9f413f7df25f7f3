"""Tables of codes, made from the code. ``make tables`` writes them into the README, and the API shows them."""

import re
import sys
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Protocol, cast

from deployments.failure_code import FailureCode
from deployments.stage import Stage
from serve_app.jobs.conditions import WaitCode


class _Explained(Protocol):
    value: str
    meaning: str


#: By the field of a job that holds them.
_FIELDS: dict[str, type[Enum]] = {"stage": Stage, "wait_code": WaitCode, "error_code": FailureCode}


def table(field: str) -> str:
    """Markdown: every value of the field and what it means. ↻: such a failure is followed by another attempt."""
    rows = [f"| `{field}` | meaning |", "|---|---|"]
    for member in cast("Iterable[_Explained]", _FIELDS[field]):
        again = " ↻" if getattr(member, "transient", False) else ""
        rows.append(f"| `{member.value}`{again} | {member.meaning} |")
    return "\n".join(rows)


def with_tables(page: str) -> str:
    """``page`` with each table made anew: from the header that names the field to the next blank line."""
    for field in _FIELDS:
        old = re.compile(rf"^\| `{field}` \| meaning \|\n(?:\|.*\n)+", re.MULTILINE)
        made = table(field) + "\n"
        page, count = old.subn(lambda _, made=made: made, page)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"there are {count} tables of {field}, not one")
    return page


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text()))
