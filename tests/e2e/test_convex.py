"""The Convex back end of ``examples/convex`` against a running service: its types, and its own tests."""

import shutil
from pathlib import Path

from tests.node import installed, ran
from tests.stack import Stack

ROOT = Path(__file__).parents[2]


def test_the_convex_example_works(stack: Stack, tmp_path: Path) -> None:
    # Its client is made from where the description lies in this repository.
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "openapi.json", tmp_path / "docs")
    project = installed(ROOT / "examples" / "convex", tmp_path / "examples")
    ran(["npm", "run", "client"], project, timeout_s=60)
    ran(["npm", "run", "check"], project, timeout_s=120)
    key = stack.http.headers["authorization"].removeprefix("Bearer ")
    said = ran(["npm", "test"], project, 300, {"VIDEO_API_URL": str(stack.http.base_url), "VIDEO_API_KEY": key})
    # Which is seen where the test fails later, e.g. by its time.
    print(said)
