"""The second stage: makes a node of the machine, on the image's Python, and becomes it.

Its environment is the first stage's. ``STATE`` keeps what the head has handed out, and the environment made of it.
"""

import hashlib
import json
import os
import signal
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from cluster.bootstrap.fault import Fault
from cluster.bootstrap.files import PATIENCE_S, PAUSE_S, Files
from cluster.bootstrap.head import Head, HeadRefuses
from cluster.bootstrap.image import Image
from cluster.bootstrap.order import Order
from cluster.bootstrap.packages import Environment
from cluster.bootstrap.progress import Progress
from cluster.bootstrap.speaker import Speaker

#: The state that the whole of it is to the head, and the two phases that it says apart.
STATE, FETCHING, INSTALLING = "installing", "fetching", "installing"


def main() -> NoReturn:
    """Become the node, or exit with status 1, and say why."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    state = Path(os.environ.get("STATE", "/root/video-api"))
    state.mkdir(parents=True, exist_ok=True)
    head = Head(os.environ["HUB"], os.environ["MESH_TOKEN"])
    progress = Progress()
    progress.begin(STATE, FETCHING)
    with Speaker(head, progress) as speaker:
        try:
            order = ordered(head, state)
            programs = provide(head, order, state, progress, speaker)
            speaker.say()
            become(order, programs, state)
        except Fault as fault:
            print(f"bootstrap: {fault}", flush=True)
            progress.fail(str(fault))
        except Exception as error:
            traceback.print_exc()
            # Its message may quote what the head alone should read.
            progress.fail(f"the bootstrap has failed: {type(error).__name__}")
        speaker.say()
    sys.exit(1)


def ordered(head: Head, state: Path) -> Order:
    """The head's order; the last one if the head is away, or has let somebody in with this token. Raises Fault."""
    kept = state / "config.json"
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            text = b"".join(head.fetch("config.json"))
            order = Order.parse(text)
            _keep(kept, text)
            return order
        except ValueError as error:
            raise Fault(str(error)) from error
        except (OSError, HeadRefuses) as error:
            print(f"bootstrap: no config.json: {error}", flush=True)
            if kept.exists():
                return Order.parse(kept.read_bytes())
            if time.monotonic() > until or (isinstance(error, HeadRefuses) and error.reason.final):
                raise Fault(f"no config.json: {error}") from None
        # The head is away, and nothing here can tell when it is back.
        time.sleep(PAUSE_S)


def provide(head: Head, order: Order, state: Path, progress: Progress, speaker: Speaker) -> Path:
    """Folder of the programs, once everything is there. Raises Fault."""
    image = Image.here()
    image.check(order)
    if image.is_ours(order):
        return Path(sysconfig.get_path("scripts"))
    if order.wheel is None:
        raise Fault(f"the head hands out no {order.requirement} {order.version}")
    environment = Environment(state / "environment", _key(order, image))
    if environment.is_complete:
        return environment.programs
    speaker.say()
    files = Files(head, state / "files", progress.measure)
    files.fetch(image.lacks(order))
    progress.begin(STATE, INSTALLING)
    speaker.say()
    pins = files.folder / "constraints.txt"
    constraints = state / "constraints.txt"
    constraints.write_text(image.constraints(pins.read_text()))
    environment.make()
    environment.install(order.requirement, files.folder / order.wheel.name, constraints, no_index=order.no_index)
    environment.finish()
    return environment.programs


def become(order: Order, programs: Path, state: Path, execute: Callable[..., object] = os.execve) -> None:
    """``video-api node join``, in place of this process. The token goes by the environment, where nobody else looks."""
    program = str(programs / "video-api")
    command = [program, "node", "join", "--hub", os.environ["HUB"], "--state", str(state / "node"), *order.arguments]
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    execute(program, command, {**os.environ, **order.environment, "PATH": path})


def _key(order: Order, image: Image) -> str:
    """Of all that an environment is made of."""
    made_of = [
        [asdict(file) for file in order.files],
        order.requirement,
        order.no_index,
        sorted(image.versions.items()),
    ]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def _keep(path: Path, text: bytes) -> None:
    """For this user's eyes alone: it holds presigned links."""
    new = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(text)
    os.replace(new, path)
