"""What the commands that start Ray pass on to it."""

from collections.abc import Sequence
from typing import Annotated

import typer

from serve_app.cli.terminal import UsageProblem

PassEnv = Annotated[
    list[str] | None,
    typer.Option("--pass-env", metavar="NAME", help="One more variable for what runs on Ray.", show_default=False),
]
ObjectStoreMb = Annotated[int, typer.Option(min=75, help="Ray's object store.")]


def model_variables() -> set[str]:
    """What the models read, on the head and on nodes."""
    from deployments.registry import MODELS

    read = {name for spec in MODELS.values() for name in (spec.weights_variable, *spec.weights_checks, *spec.variables)}
    return {*read, "VIDEO_API_DATA_DIR", "LOG_LEVEL"}


def weight_paths() -> set[str]:
    """What names files that a model can do with besides its weights. On a node they may have to be fetched first."""
    from deployments.registry import MODELS

    return {name for spec in MODELS.values() for name in spec.weights_checks if name != spec.weights_variable}


def passed(names: Sequence[str]) -> set[str]:
    from cluster.environment import KEPT

    if refused := sorted(KEPT.intersection(names)):
        raise UsageProblem(f"--pass-env: {', '.join(refused)} stays in this process: any node can read what Ray's have")
    return set(names)
