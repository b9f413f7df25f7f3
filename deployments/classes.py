"""Classes of GPU memory, and the Serve deployments that a model has: one for each class that it is served on.

A class is named by its GiB. The deployment of a model's largest class has the model's name, as has the only one of a
model that is served without classes; others are ``ltx2-40gb``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deployments.registry import MODELS

#: GiB. A card is of the largest that it holds.
CLASSES = (80, 48, 40, 24)
_CLASSED = re.compile(r"(.+)-\d+gb")


@dataclass(frozen=True)
class Deployment:
    """One model on one class of GPUs."""

    #: Of the Serve deployment.
    name: str
    model: str
    #: GiB; None: it takes whatever GPU there is, or none.
    gib: int | None = None


def deployments(classes: Mapping[str, Sequence[int]]) -> Sequence[Deployment]:
    """All there are: of each model in the registry one for each of its ``classes`` (GiB), the largest first."""
    found = []
    for model in MODELS:
        sizes = sorted(set(classes.get(model, ())), reverse=True)
        found.append(Deployment(model, model, sizes[0] if sizes else None))
        found += [Deployment(f"{model}-{gib}gb", model, gib) for gib in sizes[1:]]
    return found


def model_of(deployment: str) -> str:
    """The model that a deployment of this name serves."""
    classed = None if deployment in MODELS else _CLASSED.fullmatch(deployment)
    return classed[1] if classed else deployment
