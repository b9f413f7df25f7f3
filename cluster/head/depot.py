"""What this head hands out to the machines that it rents: its own code, its pins, the bootstrap, an order for each.

See ``cluster.bootstrap`` for who fetches it. Everything is made once, of what runs here, so that head and nodes are the
same; only the order is made anew for each node that asks.
"""

import asyncio
import hashlib
import inspect
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType

import structlog

import cluster
import cluster.bootstrap
import cluster.mesh
import cluster.mesh.invitation
import cluster.mesh.plan
import cluster.mesh.wire
from cluster.bootstrap import fault, files, head, image, install, order, packages, progress, speaker, traffic
from cluster.bootstrap.order import File, Order, normalized
from cluster.briefing import python_version
from cluster.head.wheel import archive, installed, wheel_of
from cluster.mesh.registry import Node

log = structlog.get_logger()

#: The second stage's file, and what is in it beside its beginning.
INSTALL = "install.pyz"
_STAGE: tuple[ModuleType, ...] = (
    *(cluster, cluster.mesh, cluster.mesh.invitation, cluster.mesh.plan, cluster.mesh.wire),
    *(cluster.bootstrap, fault, files, head, image, install, order, packages, progress, speaker, traffic),
)
_MAIN = "from cluster.bootstrap.install import main\n\nmain()\n"
_ORDER, _PINS = "config.json", "constraints.txt"
#: What our distribution installs, and with which extra on a node.
_DISTRIBUTION, _EXTRA, _PACKAGES = "video-api", "gpu", ("cluster", "deployments", "serve_app")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What one node is to do."""

    #: Of its process; may hold presigned links.
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Of ``video-api node join``.
    arguments: tuple[str, ...] = ()


Describe = Callable[[Node], Awaitable[Assignment]]


@dataclass(frozen=True)
class _Stock:
    """What is the same for all nodes."""

    #: By name.
    paths: Mapping[str, Path]
    #: Those that a node installs from.
    files: tuple[File, ...]


class HeadDepot:
    """See :class:`cluster.mesh.depot.Depot`."""

    def __init__(self, *, describe: Describe, folder: Path, wheelhouse: Path | None = None) -> None:
        """``describe`` says what the node that asks is to do. ``folder``: what is made is kept there. ``wheelhouse``:
        a folder of wheels; nodes install from these alone, and ask no index."""
        self._describe = describe
        self._folder = folder
        self._wheelhouse = wheelhouse
        self._making: asyncio.Task[_Stock] | None = None

    async def open(self, node: Node, name: str) -> Path | bytes | None:
        stock = await self._stock()
        return await self._order(node, stock) if name == _ORDER else stock.paths.get(name)

    async def _stock(self) -> _Stock:
        """Made at the first question. Goes on if whoever asked has left; one that failed is begun again."""
        if self._making is None or (self._making.done() and self._making.exception() is not None):
            self._making = asyncio.create_task(asyncio.to_thread(self._make))
        return await asyncio.shield(self._making)

    def _make(self) -> _Stock:
        distribution = installed(_DISTRIBUTION)
        pins = self._folder / _PINS
        wheel = wheel_of(distribution, _PACKAGES, self._folder)
        pins.write_text(constraints(Path(__file__).parents[2] / _PINS))
        wheels = sorted(self._wheelhouse.glob("*.whl")) if self._wheelhouse is not None else []
        # Ours is the one that runs here, whatever lies in the wheelhouse.
        paths = {path.name: path for path in [*wheels, wheel, pins]}
        stage = self._folder / INSTALL
        archive(stage, {**dict(map(_entry, _STAGE)), "__main__.py": _MAIN.encode()})
        found = tuple(File(name, path.stat().st_size, _sha256(path)) for name, path in sorted(paths.items()))
        log.info("depot.ready", files=len(found), megabytes=sum(file.size for file in found) >> 20)
        return _Stock({**paths, INSTALL: stage}, found)

    async def _order(self, node: Node, stock: _Stock) -> bytes:
        assignment = await self._describe(node)
        distribution = installed(_DISTRIBUTION)
        wanted = Order(
            files=stock.files,
            python=python_version(),
            torch=torch_version(distribution.requires or ()),
            requirement=f"{_DISTRIBUTION}[{_EXTRA}]",
            version=distribution.version,
            no_index=self._wheelhouse is not None,
            environment=dict(assignment.environment),
            arguments=assignment.arguments,
        )
        return json.dumps(asdict(wanted)).encode()


def torch_version(requires: Iterable[str]) -> str:
    """The one that nodes need: our requirements name it exactly. Raises LookupError if they don't."""
    for requirement in requires:
        if match := re.match(r"torch==([\w.]+)", requirement):
            return match[1]
    raise LookupError("the requirements name no version of torch")


def constraints(repository: Path) -> str:
    """The file of the source tree; where this head was installed without one, the versions that are installed."""
    if repository.exists():
        return repository.read_text()
    installed = {normalized(each.name): each.version for each in metadata.distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(installed.items()) if name != _DISTRIBUTION)


def _entry(module: ModuleType) -> tuple[str, bytes]:
    """A module's name as a file, and its source."""
    path = module.__name__.replace(".", "/")
    is_package = hasattr(module, "__path__")
    return f"{path}/__init__.py" if is_package else f"{path}.py", inspect.getsource(module).encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
