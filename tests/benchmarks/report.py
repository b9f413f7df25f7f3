"""How figures are kept: a JSON and a table in ``results/``, each part of them with the machine it was measured on."""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "diffusers", "transformers")


def machine(device: torch.device) -> dict[str, Any]:
    """What figures depend on besides the code: the device, its limits, and the versions."""
    facts: dict[str, Any] = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _said("git", "-C", str(RESULTS), "rev-parse", "--short", "HEAD"),
        "device": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {
            "device": card.name,
            "memory_gib": round(card.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "driver": _said(
                "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", str(device.index or 0)
            ),
        }
    return facts


def card_state(device: torch.device) -> dict[str, str]:
    """Clock and power of the card at this moment, as its driver says: a card that is held back shows it here."""
    if device.type != "cuda":
        return {}
    fields = ("clocks.sm", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu")
    said = _said("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "-i", str(device.index or 0))
    return dict(zip(fields, map(str.strip, said.split(",")), strict=False))


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median of the runs, the least and the most, and how many they were."""
    return {
        "median": round(statistics.median(seconds), 4),
        "least": round(min(seconds), 4),
        "most": round(max(seconds), 4),
        "runs": len(seconds),
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of Markdown. The first column is of words, the others of figures."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def save(
    name: str, part: str, facts: Mapping[str, Any], result: Any, lines: Sequence[str], folder: Path = RESULTS
) -> None:
    """Put ``part`` into ``<name>.json``, and write ``<name>.md`` anew from all parts that are in there.

    Parts may have been measured on different machines, so each keeps its own ``facts``. ``lines`` are its Markdown.
    """
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    parts: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    parts[part] = {"machine": dict(facts), "result": result, "table": list(lines)}
    path.write_text(json.dumps(parts, indent=1) + "\n")
    (folder / f"{name}.md").write_text("\n".join(_page(parts)) + "\n")


def _page(parts: Mapping[str, Any]) -> list[str]:
    page: list[str] = []
    for part, kept in parts.items():
        on = ", ".join(f"{name} {value}" for name, value in kept["machine"].items() if name != "device")
        page += [f"## {part}", "", f"{kept['machine']['device']}: {on}", "", *kept["table"], ""]
    return page[:-1]


def _processor() -> str:
    info = Path("/proc/cpuinfo").read_text()
    names = (line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name"))
    return next(names, platform.machine())


def _said(*command: str) -> str:
    """What a program prints; nothing where it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except OSError:
        return ""
