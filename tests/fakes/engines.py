"""An engine without a model: what it does at each stage is the test's to say."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deployments.contract import EngineAbility, MediaFacts
from deployments.engine import InputFile, ModelSpec, Params, Rendered, Step

VIDEO = b"an mp4"
FACTS = MediaFacts(width=64, height=64, fps="24/1", frames=25, has_audio=False)


class NameParams(Params):
    """Which job this is."""

    name: str = ""


class Gate:
    """A place to wait in: the test sees that somebody has come, and lets him go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, *_: object) -> None:
        self.reached.set()
        # The limit turns a hang into a failure.
        if not self.opened.wait(30):
            raise TimeoutError("the test never opened this gate")


class ScriptedEngine:
    """``script[stage, name]`` is called when that stage of that job begins; ``run`` hands it ``step`` as well."""

    def __init__(self) -> None:
        self.random_weights = False
        self.can = EngineAbility()
        #: What it publishes.
        self.video = VIDEO
        self.script: dict[tuple[str, str], Callable[..., Any]] = {}
        #: ``(stage, name, "begin" | "end")`` in order.
        self.events: list[tuple[str, str, str]] = []
        self.on_gpu = 0
        self.most_on_gpu = 0
        self.freed = 0
        self.workdirs: list[Path] = []
        self.inputs: list[Mapping[str, bytes]] = []

    def prepare(self, params: Mapping[str, Any], inputs: Mapping[str, InputFile], workdir: Path) -> str:
        name = str(params["name"])
        self.workdirs.append(workdir)
        self.inputs.append({key: file.path.read_bytes() for key, file in inputs.items()})
        self._play("prepare", name)
        return name

    def run(self, prepared: str, step: Step) -> str:
        self.on_gpu += 1
        self.most_on_gpu = max(self.most_on_gpu, self.on_gpu)
        try:
            self._play("run", prepared, step)
        finally:
            self.on_gpu -= 1
        return prepared

    def publish(self, result: str, workdir: Path) -> Rendered:
        self._play("publish", result)
        path = workdir / "output.mp4"
        path.write_bytes(self.video)
        return Rendered(path=path, media=FACTS, notes={"seed": 7})

    def ability(self) -> EngineAbility:
        return self.can

    def free(self) -> None:
        self.freed += 1
        self._play("free", "")

    def _play(self, stage: str, name: str, *args: Any) -> None:
        self.events.append((stage, name, "begin"))
        try:
            self.script.get((stage, name), lambda *_: None)(*args)
        finally:
            self.events.append((stage, name, "end"))


def spec_of(engine: ScriptedEngine, *, timeout_s: float = 60) -> ModelSpec:
    """A model made of this engine, for the registry."""

    class Spec(ModelSpec):
        def load_engine(self) -> ScriptedEngine:
            return engine

    return Spec(
        name="scripted",
        title="Scripted",
        description="For tests.",
        params=NameParams,
        inputs=(),
        timeout_s=timeout_s,
        engine="tests.fakes.engines:ScriptedEngine",
        weights_variable="SCRIPTED_MODEL_PATH",
    )
