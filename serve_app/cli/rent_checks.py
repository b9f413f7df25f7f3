"""What renting nodes takes, as ``video-api doctor`` looks at it: caps, image, weights, and the account with Vast.ai."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.cli.finding import Finding, Look, State
from serve_app.cli.offers import MAKE_A_KEY, vast_client
from serve_app.cli.terminal import UsageProblem

if TYPE_CHECKING:
    from cluster.vast.provider import Kind
    from serve_app.cli.renting import RentingSettings
    from serve_app.settings import Settings


@dataclass(frozen=True)
class _Plan:
    """What would be rented."""

    settings: "RentingSettings"
    kinds: Mapping[str, "Kind"]
    #: By node type.
    models: Mapping[str, Sequence[str]]
    most: Mapping[str, int]

    @property
    def limits_usd(self) -> tuple[float, float]:
        """What a node may cost by the hour, and below what credit is little."""
        return self.settings.fleet_usd_per_node_hour, self.settings.fleet_low_credit_usd


def looks(rents: bool, config: Path, cluster: Path) -> Mapping[str, Look]:
    """By part; what is wrong with the plan itself is found of its caps. Without a key, only what it would be good for.

    ``config`` and ``cluster`` are the head's two YAML files.
    """
    if not rents:
        return {"vast": _unused}
    try:
        plan = _planned(config, cluster)
    except UsageProblem as error:
        fault = str(error)

        async def wrong(settings: "Settings") -> Finding:
            return Finding(State.WRONG, fault, "The head does not start like this.")

        return {"caps": wrong, "vast": _account}

    async def caps(settings: "Settings") -> Finding:
        return _caps(plan)

    async def image(settings: "Settings") -> Finding:
        return _image(plan.settings.vast_image)

    async def weights(settings: "Settings") -> Finding:
        return await _weights(settings, sorted({model for models in plan.models.values() for model in models}))

    async def vast(settings: "Settings") -> Finding:
        return await _market(plan)

    return {"weights": weights, "caps": caps, "image": image, "vast": vast}


def _planned(config: Path, cluster: Path) -> _Plan:
    """Raises UsageProblem."""
    from cluster.autoscaler.configuration import BadClusterConfig, ClusterConfig
    from deployments.classes import model_of
    from serve_app.cli.renting import RentingSettings, deployments_of, kinds_of
    from serve_app.serving.deploy import read_config

    settings = RentingSettings.load()
    for path in (config, cluster):
        if not path.exists():
            raise UsageProblem(f"there is no {path}: run this where the head runs, or name its files")
    try:
        found = ClusterConfig.read(cluster)
    except BadClusterConfig as error:
        raise UsageProblem(str(error)) from None
    if found.provided:
        raise UsageProblem(f"{cluster} names a provider, and VAST_API_KEY is set: which of them shall it be?")
    kinds, node_types = kinds_of(found, settings), found.node_types
    served = deployments_of(read_config(config), node_types)
    models = {name: sorted({model_of(each) for each in here}) for name, here in served.items()}
    return _Plan(settings, kinds, models, {name: node_types[name].most for name in models})


def _caps(plan: _Plan) -> Finding:
    caps = plan.settings
    nodes = " and ".join(f"{most} {name}" for name, most in plan.most.items())
    words = (
        f"at most ${caps.fleet_usd_per_hour:.2f}/h, ${caps.fleet_usd_per_day:.2f} a day,"
        f" ${caps.fleet_usd_per_node_hour:.2f}/h a node; {nodes}"
    )
    return Finding(State.OK, words)


def _image(image: str) -> Finding:
    from serve_app.cli.renting import IMAGE, IMAGE_PYTHON, PYTHON, python_fault

    name = image.partition("@")[0]
    if fault := python_fault(image):
        return Finding(State.WRONG, fault, "Nodes would refuse: code passes between head and node pickled.")
    if image == IMAGE:
        return Finding(State.OK, f"{name}, Python {IMAGE_PYTHON} as here")
    return Finding(State.OK, f"{name}: it needs Python {PYTHON} and our torch, which nodes look at themselves")


async def _weights(settings: "Settings", models: Sequence[str]) -> Finding:
    """As the head looks at them before it rents anything."""
    from cluster.head.renting import NoWeights
    from serve_app.cli.supply import Supply

    supply = Supply(settings, {model: (model,) for model in models}, os.environ)
    found = await asyncio.gather(*map(supply.check, models), return_exceptions=True)
    faults = []
    for each in found:
        if isinstance(each, NoWeights):
            faults.append(str(each))
        elif each is not None:
            raise each
    if faults:
        remedy = "No machine is rented for a model whose weights can't be had."
        return Finding(State.WRONG, "; ".join(faults), remedy)
    random = ", or random ones" if settings.allow_random_weights else ""
    return Finding(State.OK, f"of {' and '.join(models)}: nodes can fetch them{random}")


async def _unused(settings: "Settings") -> Finding:
    return Finding(State.UNSET, "VAST_API_KEY is not set", "With it the head rents GPU nodes, within its caps.")


async def _account(settings: "Settings") -> Finding:
    return await _market(None)


async def _market(plan: _Plan | None) -> Finding:
    """The account, and how much there is to rent for each of the plan's types."""
    from cluster.vast import search
    from cluster.vast.errors import Unauthorized, VastError
    from cluster.vast.offers import rank

    types = {} if plan is None else {name: plan.kinds[name] for name in plan.models}
    most_usd, little_usd = (0.0, 0.0) if plan is None else plan.limits_usd
    try:
        client = vast_client()
        assert client is not None
        async with client as vast:
            credit = await vast.credit()
            if credit <= 0:
                return Finding(
                    State.WRONG, f"the account has {credit:.2f} dollars", "Add credit: nothing can be rented."
                )
            fitting = {}
            for name, kind in types.items():
                page = await vast.search(search.fitting(kind.node))
                kept = rank(page.offers, kind.node, kind.work).kept
                fitting[name] = sum(each.offer.dph_total <= most_usd for each in kept)
    except (UsageProblem, Unauthorized) as error:
        return Finding(State.WRONG, str(error), MAKE_A_KEY)
    except VastError as error:
        return Finding(State.WRONG, str(error))
    words = "; ".join(
        [f"{credit:.2f} dollars of credit", *(f"{count} offers for {name}" for name, count in fitting.items())]
    )
    if empty := [name for name, count in fitting.items() if not count]:
        return Finding(State.UNSET, words, f"`video-api offers --type {empty[0]}` says what there is.")
    if credit < little_usd:
        return Finding(State.UNSET, words, "That is little (FLEET_LOW_CREDIT_USD): add credit.")
    return Finding(State.OK, words)
