"""What a client costs: what ``pip install video-api`` adds to httpx and rich, and how long it takes to start.

``python tests/benchmarks/install.py``, half a minute. Prints a Markdown table. Each start is a process of its own in an
environment that has a client and nothing else; starts of each kind take turns, and the middle one counts.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fakes.client_install import ClientInstall, install_client

ROUNDS = 15
#: Bars.
MOST_MEGABYTES, MOST_SECONDS = 10, 0.3

_HELP = "from serve_app.cli import app; app(['submit', '--help'], standalone_mode=False)"
_STARTS = {
    "nothing, Python alone": "pass",
    "`import httpx`": "import httpx",
    "`import serve_app.client`": "import serve_app.client",
    "`video-api submit --help`": _HELP,
}


def main() -> None:
    """Install it, start it, print what was found."""
    with tempfile.TemporaryDirectory() as folder:
        client = install_client(Path(folder) / "client")
        times = _times(client)
    httpx = times["`import httpx`"]
    print("| start | seconds | of a bare `import httpx` |\n|---|---:|---:|")
    for name, seconds in times.items():
        print(f"| {name} | {seconds:.3f} | {seconds / httpx:.2f} |")
    imported = times["`import serve_app.client`"] - times["nothing, Python alone"]
    print(f"\nThe client is imported in {imported:.3f} s (bar: {MOST_SECONDS} s).")
    print(f"It adds {client.added_bytes / 1e6:.1f} MB to httpx and rich (bar: {MOST_MEGABYTES} MB): {_others(client)}.")


def _times(client: ClientInstall) -> dict[str, float]:
    """The median start of each kind, seconds."""
    found: dict[str, list[float]] = {name: [] for name in _STARTS}
    # The first round fills the caches of the disk.
    for _ in range(ROUNDS + 1):
        for name, program in _STARTS.items():
            begun = time.monotonic()
            client.run("python", "-c", program).check_returncode()
            found[name].append(time.monotonic() - begun)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}


def _others(client: ClientInstall) -> str:
    return ", ".join(["video-api", *sorted(client.added)])


if __name__ == "__main__":
    main()
