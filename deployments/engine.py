"""What a model has to provide: an :class:`Engine`, described to the rest of the system by a :class:`ModelSpec`.

Adding a model = a folder with a ``spec.py`` (imported everywhere, so pydantic only) and an ``engine.py`` (imported in
replicas only, so torch is welcome there), plus one line in ``registry.py`` and one block in the Serve YAML.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from deployments.contract import EngineAbility, MediaFacts, MediaKind
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.media.formats import Format, by_content_type, wanted
from deployments.stage import Stage
from deployments.weights import CheckpointError, WeightsCheck, reason_of

#: Seconds by which a replica may find a clip longer than intake did: samples are counted there, and packets here.
LONGER_S = 1.0


class Params(BaseModel):
    """Base of a model's request parameters: the fields a client may set besides the inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One media input of a model. In HTTP it is the field ``<name>_url``, or an upload of one of ``kinds``."""

    name: str
    kinds: tuple[MediaKind, ...]
    description: str
    max_bytes: int
    #: Longest clip in seconds; None for images.
    max_seconds: float | None = None
    #: The model does without it as well. Who wants that says so, by null: who forgets it is told.
    optional: bool = False

    def require_length(self, seconds: float, grace_s: float = LONGER_S) -> None:
        """Raise ``Fault('media_too_long')`` for a clip of ``seconds``, give or take ``grace_s``."""
        if self.max_seconds is not None and seconds > self.max_seconds + grace_s:
            raise Fault(
                FailureCode.MEDIA_TOO_LONG,
                f"It is {seconds:.1f} s long; at most {self.max_seconds:g} s are allowed. Send a shorter clip.",
            )


@dataclass(frozen=True)
class InputFile:
    """An input on the replica's disk, and what intake found it to be."""

    path: Path
    content_type: str

    def format(self, spec: InputSpec) -> Format:
        """How to read it. Raises ``Fault('unsupported_media')`` if ``spec`` does not take it."""
        format = by_content_type(self.content_type)
        if format is None or format.kind not in spec.kinds:
            raise Fault(FailureCode.UNSUPPORTED_MEDIA, f"This is {self.content_type}. Send {wanted(spec.kinds)}.")
        return format


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything the head knows about a model. Importable without torch."""

    #: Name in the API, of the Serve deployment and of the metrics label.
    name: str
    title: str
    description: str
    params: type[Params]
    inputs: tuple[InputSpec, ...]
    #: Longest run in seconds before the attempt counts as failed.
    timeout_s: float
    #: Seconds of the GPU that a job with default parameters is expected to take, until some have told.
    expected_run_s: float = 60.0
    #: How many times as long one with these parameters takes, as far as they tell: more than 0.
    effort: Callable[[Any], float] = lambda params: 1.0
    #: How large a job with these parameters is, in what decides whether a GPU has the memory for it: more than 0.
    size: Callable[[Any], int] = lambda params: 1
    #: What sizes are, in words for refusals, and the field that is to be made smaller.
    size_unit: str = "size"
    size_field: str = ""
    #: In words for refusals, what of parameters like these fits into a size.
    fitting: Callable[[Any, int], str] = lambda params, most: f"the largest size is {most:,}"
    #: Which of the model's ways to make a video these parameters ask for; ``""``: its default. And the field that says.
    variant: Callable[[Any], str] = lambda params: ""
    variant_field: str = ""
    #: By GiB of a GPU's memory what replicas on it are expected to report, until one has: the largest size by variant.
    #: Without ``""`` the default may be any of them. None: all that its parameters allow.
    on_paper: Callable[[int], Mapping[str, int]] | None = None
    #: ``module:Class`` of the :class:`Engine`, imported in the replica.
    engine: str
    #: Environment variable that names the weights; unset means random weights of a tiny model, where that is allowed.
    weights_variable: str
    #: By variable, of these weights and of any others the model can do with: a cheap look before anything loads.
    weights_checks: Mapping[str, WeightsCheck] = field(default_factory=dict)
    #: Other variables that the engine reads.
    variables: tuple[str, ...] = ()

    def weights_faults(self, environment: Mapping[str, str]) -> tuple[str, ...]:
        """What is wrong with the paths that ``environment`` names, each with its variable. Takes milliseconds."""
        faults = []
        for variable, check in self.weights_checks.items():
            if path := environment.get(variable):
                try:
                    check(Path(path))
                except (CheckpointError, OSError) as error:
                    faults.append(f"{variable}={path}: {reason_of(error)}")
        return tuple(faults)

    def require_weights(self, environment: Mapping[str, str], *, allow_random: bool) -> None:
        """Before minutes of loading. Raises :class:`CheckpointError` naming the variable at fault and the cause."""
        if faults := self.weights_faults(environment):
            raise CheckpointError("; ".join(faults))
        if not environment.get(self.weights_variable) and not allow_random:
            raise CheckpointError(
                f"{self.weights_variable} is not set on this node: without weights its videos would be noise; "
                "ALLOW_RANDOM_WEIGHTS=1 on the head allows that, for tests"
            )

    def input(self, name: str) -> InputSpec:
        """The input of this name."""
        return next(spec for spec in self.inputs if spec.name == name)

    def load_engine(self) -> "Engine":
        """Import the engine and load its weights (minutes for a real checkpoint)."""
        module, _, name = self.engine.partition(":")
        factory: Callable[[], Engine] = getattr(importlib.import_module(module), name)
        return factory()


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A finished mp4 on the replica's disk."""

    path: Path
    media: MediaFacts
    #: What the client should know about the run, e.g. the seed that was drawn.
    notes: Mapping[str, Any] = field(default_factory=dict)


#: ``step(stage, fraction)``: call at every step with the stage's name and how much of ``run`` is done (0..1).
#: Raises to stop the run (cancelled, lease lost, timed out); let it pass through after freeing resources.
Step = Callable[[Stage, float], None]


class Engine(Protocol):
    """A loaded model. ``prepare`` and ``publish`` run in CPU threads beside other jobs; ``run`` has the GPU alone.

    All three may raise :class:`~deployments.faults.Fault`. ``workdir`` belongs to the job and is removed afterwards.
    An input is a stranger's file: it is opened as the format that it is said to have, in the sandbox, and nowhere else.
    """

    #: True when the weights are random, i.e. the output is noise.
    random_weights: bool

    def prepare(self, params: Mapping[str, Any], inputs: Mapping[str, InputFile], workdir: Path) -> Any:
        """Decode the inputs into what ``run`` needs, held to the limits of their :class:`InputSpec` once more.

        An optional one that was left out is not in ``inputs``.
        """

    def run(self, prepared: Any, step: Step) -> Any:
        """Compute on the device."""

    def publish(self, result: Any, workdir: Path) -> Rendered:
        """Encode the result as an mp4 below ``workdir``."""

    def ability(self) -> EngineAbility:
        """What it can be asked, on this device with these weights."""

    def free(self) -> None:
        """Give back what can be freed after a failed run, e.g. the CUDA cache."""
