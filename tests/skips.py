"""Which tests were passed over, said where nobody can overlook it: a test that never runs proves nothing.

Each pytest run of ``make test`` writes what it skipped to the file that ``TEST_SKIPS`` names; afterwards
``python -m tests.skips`` prints them all, with the command that mends it. In CI every skip is a failure, but for those
that the machine's processor decides (``EXPECTED``).
"""

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

#: Beginnings of reasons that no installation mends.
EXPECTED = ("this processor", "this machine has GPUs")
#: What the tests need of the system, in Debian's names; some of them need root as well.
PACKAGES = (Path(__file__).parents[1] / ".ci" / "packages").read_text().split()
if shutil.which("npm") is None:
    # Not in that list: beside a Node that came from elsewhere, Debian's is not to be had.
    PACKAGES += ["nodejs", "npm"]
MEND = f"sudo apt-get install -y {' '.join(PACKAGES)} && sudo make test"


class Recorder:
    """A pytest plugin that writes down each skip."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            with open(self._path, "a") as file:
                file.write(json.dumps([report.nodeid, str(reason).removeprefix("Skipped: ")]) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    # With several workers, reports come to the process that started them.
    if (path := os.environ.get("TEST_SKIPS")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(path)))


def main() -> int:
    """Print the table. 1 in CI (``CI`` is set) if a test was skipped that should have run."""
    path = Path(os.environ["TEST_SKIPS"])
    skipped = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    unexpected = [(test, reason) for test, reason in skipped if not reason.startswith(EXPECTED)]
    if not skipped:
        print("\nEvery test ran.")
        return 0
    print(f"\n{len(skipped)} tests did not run:\n\n| tests | why |\n|---|---|")
    for reason, count in Counter(reason for _, reason in skipped).most_common():
        print(f"| {count} | {reason} |")
    if not unexpected:
        return 0
    print(f"\nTo run all of them: {MEND}")
    return 1 if os.environ.get("CI") else 0


if __name__ == "__main__":
    sys.exit(main())
