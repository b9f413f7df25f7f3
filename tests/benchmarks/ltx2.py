"""LTX-2: what the service adds to diffusers, what a card makes of it, and the least that it could take.

``python tests/benchmarks/ltx2.py`` measures what this machine can; parts named on the command line, only those:

- ``service``: CPU-seconds of a job over diffusers alone, on the tiny checkpoint; and the GPU's share of a backlog.
- ``card``: LTX-2.3 at its full size with random weights on CUDA, by recipe, ours beside diffusers alone. An hour for
  all recipes at the usual size; ``--recipes fast standard`` take ten minutes. On 80 GB nothing else may be there.
- ``paper``: FLOPs and bytes of each stage against the peaks of cards. Two minutes.

``--thin`` runs ``card`` on a CPU: one layer of everything at full width, about 11 GiB. It shows that the code runs.
Figures and a table go to ``tests/benchmarks/results/ltx2.{json,md}``; a part that is not measured stays as it is.
"""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
# 67 GiB of weights leave no room for gaps.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
# Of the replicas.
os.environ.setdefault("LOG_LEVEL", "error")

import torch

from deployments.ltx2.recipes import RECIPE_NAMES
from tests.benchmarks import backlog, floor, overhead, report, stages
from tests.benchmarks.floor import USUAL, Format
from tests.benchmarks.full_size import FULL, THIN

PARTS = ("service", "card", "paper")
#: What `--thin` makes where nothing else is said: the smallest clip that two stages can.
SMALLEST = Format(width=64, height=64, frames=9, fps=24)


def main() -> None:
    wish = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() and not wish.thin else "cpu")
    if "service" in wish.parts:
        _service(wish.rounds, wish.jobs, wish.run_s)
    if "card" in wish.parts:
        if device.type == "cuda" or wish.thin:
            _card(wish, device)
        else:
            print("card: skipped, there is no CUDA here; --thin runs the same code on a CPU.\n")
    if "paper" in wish.parts:
        _show("floor", torch.device("cpu"), *floor.on_paper(floor.full_size(stages.VERSION), wish.size or USUAL))


def _service(rounds: int, jobs: int, run_s: float) -> None:
    cpu = torch.device("cpu")
    for recipe in ("fast", "standard"):
        _show(f"service, {recipe}", cpu, *overhead.measure(recipe, rounds))
    shares = [backlog.measure(jobs, run_s), backlog.measure(jobs, run_s, holding=True)]
    _show("backlog", cpu, [asdict(share) for share in shares], backlog.lines(shares))


def _card(wish: argparse.Namespace, device: torch.device) -> None:
    plan = stages.Plan(
        recipes=wish.recipes,
        wanted=wish.size or (SMALLEST if wish.thin else USUAL),
        depth=THIN if wish.thin else FULL,
        warm_ups=wish.warm_ups,
        runs=wish.runs,
    )
    _show("thin" if wish.thin else "card", device, *stages.on_device(plan, device))


def _show(part: str, device: torch.device, figures: object, lines: list[str]) -> None:
    print("\n".join(lines), "\n", flush=True)
    report.save("ltx2", part, report.machine(device), figures, lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--thin", action="store_true", help="one layer of everything, on the CPU")
    parser.add_argument("--size", type=_format, help="e.g. 1024x576x121: width, height, frames")
    parser.add_argument("--recipes", nargs="+", choices=RECIPE_NAMES, default=RECIPE_NAMES)
    parser.add_argument("--warm-ups", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=9, help="jobs of `service`")
    parser.add_argument("--jobs", type=int, default=20, help="of the backlog")
    parser.add_argument("--run-s", type=float, default=1.0, help="GPU seconds of a job of the backlog")
    return parser.parse_args()


def _format(text: str) -> Format:
    width, height, frames = map(int, text.split("x"))
    return Format(width=width, height=height, frames=frames, fps=24)


if __name__ == "__main__":
    main()
