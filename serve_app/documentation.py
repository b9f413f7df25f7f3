"""Tables of codes, made from the code. ``make tables`` writes them into the README, and the API shows them."""

import re
import sys
from pathlib import Path

from deployments.explained import Explained
from deployments.failure_code import FailureCode
from deployments.stage import Stage
from serve_app.jobs.conditions import WaitCode

#: By the field of a job that holds them.
_FIELDS: dict[str, type[Explained]] = {"stage": Stage, "wait_code": WaitCode, "error_code": FailureCode}


def table(field: str) -> str:
    """Markdown: every value of the field and what it means. ↻: such a failure is followed by another attempt."""
    rows = [f"| `{field}` | meaning |", "|---|---|"]
    for member in _FIELDS[field]:
        again = " ↻" if getattr(member, "transient", False) else ""
        rows.append(f"| `{member.value}`{again} | {member.meaning} |")
    return "\n".join(rows)


def with_tables(page: str) -> str:
    """``page`` with each table made anew: from the header that names the field to the next blank line."""
    for field in _FIELDS:
        old = re.compile(rf"^\| `{field}` \| meaning \|\n(?:\|.*\n)+", re.MULTILINE)
        before, *found = old.split(page)
        if len(found) != 1:
            raise ValueError(f"there are {len(found)} tables of {field}, not one")
        page = f"{before}{table(field)}\n{found[0]}"
    return page


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text()))
