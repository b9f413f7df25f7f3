"""The weights that rented nodes fetch: where each model's are, whether they can be read, and links to them.

``<MODEL>_WEIGHTS`` of the head says where: a mirror's name in the bucket, the URL of a manifest, or ``OWNER/NAME`` of
the model hub, from where nodes fetch without a token. Unset, it is the mirror that is called like the model.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import httpx
from pydantic import ValidationError

from cluster.head.renting import NoWeights
from cluster.node.download import Manifest
from serve_app.cli.weights import linked, mirrors_of, weights_variable
from serve_app.storage.base import StorageError
from serve_app.weights.source import MirrorError

if TYPE_CHECKING:
    from serve_app.settings import Settings
    from serve_app.weights.mirrors import Mirrors

T = TypeVar("T")

#: Seconds for which links are good that a node gets: longer than a start may take.
_LINKS_S = 6 * 3600
#: For an answer of a manifest's store.
_READ_S = 15
_REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+", re.ASCII)


class Supply:
    """For nodes of each type the weights of their ``models``."""

    def __init__(
        self, settings: "Settings", models: Mapping[str, Sequence[str]], environment: Mapping[str, str]
    ) -> None:
        """``models`` by node type."""
        self._settings, self._models, self._environment = settings, models, environment

    async def check(self, node_type: str) -> None:
        """Whether all of them can be had. Raises :class:`NoWeights`."""
        for model in self._models[node_type]:
            source = self._source(model)
            if _is_url(source):
                await _read(model, source)
            elif _is_mirror(source):
                await self._in_bucket(model, source, lambda mirrors, name: mirrors.find(name))

    async def variables(self, node_type: str) -> Mapping[str, str]:
        """What a node is told, with fresh links. Raises :class:`NoWeights`."""
        found = {}
        for model in self._models[node_type]:
            source = self._source(model)
            if _is_mirror(source):
                source = await self._in_bucket(model, source, _link)
            if source:
                found[weights_variable(model)] = source
        return found

    def _source(self, model: str) -> str:
        """Empty: random weights will do. Raises :class:`NoWeights`."""
        variable = weights_variable(model)
        if source := self._environment.get(variable, ""):
            return source
        if self._settings.allow_random_weights:
            return ""
        if not self._settings.r2_endpoint:
            raise NoWeights(f"{variable} is not set, and there is no bucket (R2_ENDPOINT) with a mirror of them")
        return model

    async def _in_bucket(self, model: str, name: str, work: Callable[["Mirrors", str], T]) -> T:
        """The result. Raises :class:`NoWeights`."""
        if not self._settings.r2_endpoint:
            raise NoWeights(
                f"{weights_variable(model)}: {name} would be a mirror, and there is no bucket (R2_ENDPOINT)"
            )
        try:
            return await asyncio.to_thread(work, mirrors_of(self._settings), name)
        except MirrorError:
            hint = f"`video-api weights mirror SOURCE --name {name}`"
            raise NoWeights(f"no weights {name} for {model} are in the bucket: {hint}") from None
        except StorageError as error:
            raise NoWeights(
                f"the bucket with the weights {name} for {model} refuses: {error.message}", passing=True
            ) from None


def _link(mirrors: "Mirrors", name: str) -> str:
    return linked(mirrors, name, _LINKS_S)


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _is_mirror(source: str) -> bool:
    return bool(source) and not _is_url(source) and not _REPOSITORY.fullmatch(source)


async def _read(model: str, url: str) -> None:
    """The link may be signed: it stays out of the message."""
    variable = weights_variable(model)
    try:
        async with httpx.AsyncClient(timeout=_READ_S, trust_env=False) as client:
            answer = await client.get(url)
            answer.raise_for_status()
        Manifest.model_validate_json(answer.content)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise NoWeights(f"{variable}: its store answers {status}", passing=status >= 500 or status == 429) from None
    except httpx.HTTPError as error:
        raise NoWeights(f"{variable}: its store does not answer ({type(error).__name__})", passing=True) from None
    except (httpx.InvalidURL, ValidationError) as error:
        raise NoWeights(f"{variable}: no manifest can be read there ({type(error).__name__})") from None
