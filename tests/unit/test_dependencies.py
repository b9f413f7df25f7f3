"""What is installed for whom: ``pyproject.toml``, and what the Dockerfile reads out of it."""

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]
#: Each of the Dockerfile's programs, by the stage it is in.
PROGRAMS = {
    stage.split()[0]: program
    for stage in (ROOT / "Dockerfile").read_text().split(" AS ")[1:]
    for program in re.findall(r'python -c "(.*?)" > wanted', stage)
}


def test_each_extra_has_all_that_the_one_before_has() -> None:
    order = ("head", "gpu", "local", "demo", "dev")
    assert list(EXTRAS) == list(order)
    for less, more in pairwise(order):
        assert EXTRAS[more][0] == f"video-api[{less}]"


@pytest.mark.parametrize(("stage", "extras"), [("head", ["head"]), ("gpu", ["head", "gpu"])])
def test_an_image_gets_what_its_extra_wants(
    stage: str, extras: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    exec(PROGRAMS[stage])
    wanted = [*BASE, *(line for extra in extras for line in EXTRAS[extra] if not line.startswith("video-api["))]
    assert capsys.readouterr().out.splitlines() == wanted


def test_a_client_is_held_to_what_was_tested() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().splitlines())
    assert {re.split(r"[<>=!\[]", line)[0] for line in BASE} <= pins.keys()
