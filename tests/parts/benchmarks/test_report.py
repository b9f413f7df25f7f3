"""What is kept of a benchmark says on what it was measured, and is not lost when another part is measured anew."""

import json
from pathlib import Path

import torch

from tests.benchmarks import report

CPU = torch.device("cpu")


def test_a_part_measured_anew_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    for part, figure in (("card", 1), ("floor", 2), ("card", 3)):
        report.save("x", part, {"device": f"card {figure}"}, {"s": figure}, [f"line of {figure}"], tmp_path)
    kept = json.loads((tmp_path / "x.json").read_text())
    assert {part: (each["machine"]["device"], each["result"]["s"]) for part, each in kept.items()} == {
        "card": ("card 3", 3),
        "floor": ("card 2", 2),
    }
    page = (tmp_path / "x.md").read_text()
    assert "line of 1" not in page
    assert page.index("## card") < page.index("card 3") < page.index("line of 3") < page.index("## floor")


def test_a_machine_is_told_by_its_device_and_versions() -> None:
    facts = report.machine(CPU)
    assert facts["torch"] == torch.__version__
    assert facts.keys() >= {"device", "cores", "threads", "python", "diffusers", "transformers", "measured_at"}
    assert report.card_state(CPU) == {}


def test_a_spread_is_the_median_between_the_least_and_the_most() -> None:
    assert report.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 3.0, "runs": 3}
