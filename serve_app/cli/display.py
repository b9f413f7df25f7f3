"""Results as a person reads them in a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from serve_app.cli.progress import duration, note_of, stage_of
from serve_app.client import Job, KeyInfo, KeyUse, ModelInfo, VariantInfo

_COLOURS = {"completed": "green", "failed": "red", "cancelled": "yellow", "processing": "cyan"}
_ORDER = (
    "job_id", "model", "status", "stage", "progress", "wait_reason", "queue_position", "eta_seconds", "attempt",
    "error_code", "error_message", "result_url", "poster_url", "media", "notes", "user_id", "metadata", "timeout_s",
    "retry_of", "cost_usd", "cost_estimate_usd", "created_at", "started_at", "completed_at",
)  # fmt: skip
_LIMITS = {
    "requests_per_minute": "{}/min",
    "running_jobs": "{} running",
    "queued_jobs": "{} queued",
    "usd_per_day": "${:g}/day",
}


def job(found: Job) -> RenderableType:
    """One job, a line per field."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name in _ORDER:
        if name not in found:
            continue
        # _ORDER lists keys of Job.
        value: Any = found[name]  # type: ignore[literal-required]
        if name == "progress":
            value = f"{value:.0f} %"
        elif name.endswith("_at"):
            value = moment(value)
        elif name == "eta_seconds":
            value = f"about {duration(value)}"
        elif name == "cost_usd":
            value = f"${value:.4f}"
        elif name == "cost_estimate_usd":
            value = f"${value['low']:.4f} to ${value['high']:.4f}"
        elif isinstance(value, Mapping):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        style = _COLOURS.get(found["status"], "") if name == "status" else ""
        grid.add_row(name, Text(str(value), style=style))
    return grid


def jobs(found: Sequence[Job], *, live: bool = False) -> RenderableType:
    """A line per job; ``live``: with what happens to it now instead of whose it is."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    state, last = ("NOW", "") if live else ("STATUS", "USER")
    for heading in ("JOB", "MODEL", state, "PROGRESS", "CREATED", last):
        table.add_column(heading, no_wrap=True)
    for each in found:
        table.add_row(
            each["job_id"],
            each.get("model", "-"),
            Text(stage_of(each) if live else each["status"], style=_COLOURS.get(each["status"], "")),
            f"{each['progress']:.0f} %",
            moment(each["created_at"]),
            Text(note_of(each), style="dim") if live else Text(each.get("user_id", "-")),
        )
    return table


def keys(found: Sequence[KeyInfo]) -> RenderableType:
    """A line per key."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("KEY", "NAME", "BEGINS", "SCOPES", "LIMITS", "CREATED", "LAST USED", "ENDS"):
        # The first is for copying.
        table.add_column(heading, no_wrap=heading in ("KEY", "BEGINS"))
    for each in found:
        table.add_row(*(text for _, text in _facts(each)))
    return table


def key(found: KeyInfo) -> RenderableType:
    """One key, a line per fact."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    for name, text in _facts(found):
        grid.add_row(name, text)
    return grid


def key_use(found: KeyUse) -> RenderableType:
    """One's own key, a line per fact: how much of each limit it uses."""
    limits = found["limits"]
    uses = [
        ("requests per minute", None, limits.get("requests_per_minute")),
        ("running jobs", found.get("running_jobs"), limits.get("running_jobs")),
        ("queued jobs", found.get("queued_jobs"), limits.get("queued_jobs")),
        ("dollars in 24 hours", found.get("usd_of_24h"), limits.get("usd_per_day")),
    ]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_row("key", Text(found["key_id"] or "the service's own API_KEY"))
    grid.add_row("name", Text(found["name"]))
    grid.add_row("scopes", Text(", ".join(found["scopes"])))
    for name, used, limit in uses:
        most = "no limit" if limit is None else f"at most {limit:g}"
        grid.add_row(name, most if used is None else f"{used:g}, {most}")
    return grid


def _facts(found: KeyInfo) -> Sequence[tuple[str, Text]]:
    revoked, expires = found.get("revoked_at"), found.get("expires_at")
    limits = ", ".join(_LIMITS[name].format(value) for name, value in found["limits"].items())
    used = found.get("last_used_at")
    ends = Text(f"revoked {moment(revoked)}", style="red") if revoked else Text(moment(expires) if expires else "-")
    return [
        ("key", Text(found["key_id"])),
        ("name", Text(found["name"])),
        ("begins", Text(f"{found['hint']}…")),
        ("scopes", Text(", ".join(found["scopes"]))),
        ("limits", Text(limits or "-")),
        ("created", Text(moment(found["created_at"]))),
        ("last used", Text(moment(used) if used else "-")),
        ("ends", ends),
    ]


def models(found: Sequence[ModelInfo]) -> RenderableType:
    """A block per model."""
    parts: list[RenderableType] = []
    for model in found:
        parts += [Text.assemble((model["model"], "bold"), f"  {model['title']}"), Text(model["description"])]
        grid = Table.grid(padding=(0, 2))
        for item in model["inputs"]:
            given = "file or URL, or none" if item.get("optional") else "file or URL"
            grid.add_row("", Text(item["name"], style="cyan"), given, Text(item["description"]))
        for name, schema in model["params_schema"].get("properties", {}).items():
            default = "" if schema.get("default") is None else f"= {schema['default']}"
            grid.add_row("", Text(name, style="green"), Text(default), Text(schema.get("description", "")))
        parts += [grid, Text()]
        if model.get("deployments"):
            parts += [_deployments(model), Text()]
    return Group(*parts[:-1])


def _deployments(model: ModelInfo) -> RenderableType:
    """A line for each variant of each deployment: the largest video, and who says so."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    unit, variant = model.get("size_unit"), model.get("variant_field") or "variant"
    for heading in ("DEPLOYMENT", "GPU", variant.upper(), f"UP TO, {unit}" if unit else "UP TO", "WEIGHTS", "SAID"):
        table.add_column(heading)
    for each in model.get("deployments", []):
        gpu = "any" if each["gpu_memory_gib"] is None else f"{each['gpu_memory_gib']} GiB"
        gpu += "" if each["available"] else ", none there"
        weights = " ".join(filter(None, (each["weights"], "random" if each["random_weights"] else None)))
        said = moment(each["reported_at"]) if each["reported_at"] else "on paper"
        for name, most in _variants(each["variants"]):
            table.add_row(each["deployment"], gpu, name, most, weights or "-", said)
    return table


def _variants(found: Sequence[VariantInfo] | None) -> Iterator[tuple[str, str]]:
    """Name and largest size."""
    for each in found or ():
        name = " ".join(filter(None, (each["name"], "(default)" if each["default"] else None)))
        yield name or "-", "no limit" if each["max_size"] is None else f"{each['max_size']:,}"
    if not found:
        yield "not known yet" if found is None else "none", "-"


def health(found: Mapping[str, Any]) -> RenderableType:
    """Parts, then queues."""
    grid = Table.grid(padding=(0, 2))
    for part in ("api", "database", "storage", "ray", "redis"):
        state = str(found.get(part, "unknown"))
        style = {"ok": "green", "unused": "dim"}.get(state, "red")
        grid.add_row(part, Text(state, style=style), Text(found.get("details", {}).get(part, "")))
    details = found.get("details", {})
    for name, counts in found.get("queues", {}).items():
        state = str(found.get("models", {}).get(name, ""))
        weights = found.get("weights", {}).get(name, "")
        notes = ", ".join(filter(None, (state, f"weights {weights}" if weights else "")))
        numbers = ", ".join(f"{number} {state}" for state, number in counts.items())
        grid.add_row(name, Text(notes, style="red" if name in details else ""), Text(numbers))
        if name in details:
            grid.add_row("", "", Text(str(details[name]), style="red"))
    return grid


def moment(text: str) -> str:
    """A moment of the API as the clock on this machine's wall shows it, with the zone."""
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def size(count: int) -> str:
    """``512 bytes``, ``3.1 MB``, ``42.0 GB``."""
    if count < 100_000:
        return f"{count} bytes"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def video(found: Job) -> str:
    """Size, rate and length of a finished video, in words."""
    media = found.get("media")
    if not media:
        return "a video"
    numerator, _, denominator = str(media["fps"]).partition("/")
    try:
        fps = int(numerator) / int(denominator or 1)
        length = media["frames"] / fps
    except (ArithmeticError, ValueError):
        # Of an older service, which writes what a node says.
        return "a video"
    sound = "with sound" if media["has_audio"] else "no sound"
    return f"{media['width']}x{media['height']}, {fps:g} fps, {media['frames']} frames, {length:.1f} s, {sound}"
