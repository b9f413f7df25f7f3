"""Which weights a node has to have before it takes work, as its environment names them.

``<MODEL>_WEIGHTS`` is the URL of a manifest (see ``cluster.node.download``) or a repository of the model hub; what it
names is put into a folder, and ``<MODEL>_MODEL_PATH`` tells the model where. A checkpoint of one file is that file.
Whatever else a model reads the path of may be named like that in its own variable.
"""

import asyncio
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import structlog
from pydantic import ValidationError

from cluster.node.download import Manifest, OnProgress, WeightsError, failed, fetch, fetch_from_hub

log = structlog.get_logger()

_VARIABLE = re.compile(r"([A-Z0-9_]+)_WEIGHTS")
#: A repository of the model hub, perhaps a folder in it, perhaps at a revision. A path that begins nowhere looks alike.
_REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+(/[\w.-]+)*(@[\w./-]+)?")
#: Seconds between two lines of progress.
_SAY_S = 5.0


@dataclass(frozen=True)
class Checkpoint:
    """One model's weights: what they are called, where they come from and where they go."""

    model: str
    source: str
    folder: Path
    #: Tells the model where they are.
    variable: str


def wanted(environment: Mapping[str, str], folder: Path, paths: Collection[str] = ()) -> tuple[Checkpoint, ...]:
    """All that the environment names. A model whose path is set already needs nothing.

    ``paths`` are variables that models read as paths: what is a URL or of the hub there is fetched as well.
    """
    found = []
    for name, source in sorted(environment.items()):
        match = _VARIABLE.fullmatch(name)
        variable = f"{match[1]}_MODEL_PATH" if match else name
        if (match and source and not environment.get(variable)) or (name in paths and is_source(source)):
            model = match[1] if match else name
            found.append(Checkpoint(model, source, folder / model.lower(), variable))
    return tuple(found)


def is_source(value: str) -> bool:
    """Whether it says where weights come from, and not where they are."""
    if value.startswith(("http://", "https://")):
        return True
    return _REPOSITORY.fullmatch(value) is not None and not Path(value).exists()


async def provide(checkpoint: Checkpoint, on_progress: OnProgress = lambda done, total: None) -> dict[str, str]:
    """Make the weights be there; the variable that says where. Raises WeightsError."""
    begun = time.monotonic()
    if checkpoint.source.startswith(("http://", "https://")):
        await fetch(await _manifest(checkpoint), checkpoint.folder, _Progress(checkpoint.model, on_progress))
    else:
        await asyncio.to_thread(fetch_from_hub, checkpoint.source, checkpoint.folder)
    files = [path for path in checkpoint.folder.iterdir() if not path.name.startswith(".")]
    path = files[0] if len(files) == 1 and files[0].is_file() else checkpoint.folder
    log.info("weights.ready", model=checkpoint.model, seconds=round(time.monotonic() - begun, 1))
    return {checkpoint.variable: str(path)}


async def _manifest(checkpoint: Checkpoint) -> Manifest:
    try:
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            answer = await client.get(checkpoint.source)
            answer.raise_for_status()
        return Manifest.model_validate_json(answer.content)
    except httpx.HTTPStatusError as error:
        raise failed(f"{checkpoint.model}'s manifest", error.response.status_code, "") from None
    except (httpx.HTTPError, ValidationError) as error:
        raise WeightsError(f"{checkpoint.model}: no manifest: {type(error).__name__}") from None


class _Progress:
    """Logs how far it is, now and then."""

    def __init__(self, model: str, on_progress: OnProgress) -> None:
        self._model = model
        self._on_progress = on_progress
        self._said = 0.0

    def __call__(self, done: int, total: int) -> None:
        self._on_progress(done, total)
        now = time.monotonic()
        if now - self._said >= _SAY_S:
            self._said = now
            log.info("weights.progress", model=self._model, done_mb=done >> 20, total_mb=total >> 20)
