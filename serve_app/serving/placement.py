"""Why no node takes a replica, in words: what it needs against what there is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A machine of the Ray cluster."""

    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str]


def could_take(needs: Mapping[str, float], labels: Mapping[str, str], node: Node) -> bool:
    """Whether the node is one for such a replica, whatever is on it now."""
    enough = all(node.total.get(name, 0.0) >= amount for name, amount in needs.items())
    return enough and fits(labels, node.labels)


def fits(wanted: Mapping[str, str], have: Mapping[str, str]) -> bool:
    """Whether a node with the labels that it has is one that a label selector wants."""
    return all(_matches(have.get(key), want) for key, want in wanted.items())


def why_no_node_fits(needs: Mapping[str, float], labels: Mapping[str, str], nodes: Sequence[Node]) -> str | None:
    """``needs`` and ``labels`` as Ray has them (resources, label selector). None if a node would take it now."""
    labelled = [node for node in nodes if fits(labels, node.labels)]
    if not labelled:
        with_gpu = "a GPU and " if needs.get("GPU") else ""
        return f"no node with {with_gpu}{_labels(labels)} is here" if labels else "no node is here"
    gpus = needs.get("GPU", 0)
    if gpus and not any(node.total.get("GPU", 0) >= gpus for node in labelled):
        # Half a GPU is as absent as a whole one.
        what = "a GPU" if gpus <= 1 else f"{gpus:g} GPUs"
        return f"no node with {what}{f' and {_labels(labels)}' if labels else ''} is here"
    # Of the nodes it might go to, the one that comes nearest.
    return min((_short(needs, node) for node in labelled), key=len) or None


def _short(needs: Mapping[str, float], node: Node) -> str:
    lacks = []
    for name, amount in sorted(needs.items()):
        free, total = node.free.get(name, 0.0), node.total.get(name, 0.0)
        if free < amount:
            have = f"{free:g} free" if total >= amount else f"a node has {total:g}"
            lacks.append(f"{_amount(name, amount)}, {have}")
    return f"needs {'; '.join(lacks)}" if lacks else ""


def _amount(name: str, amount: float) -> str:
    if name == "memory":
        return f"{amount / 2**30:.1f} GiB of memory"
    plural = "s" if amount != 1 and name in ("CPU", "GPU") else ""
    return f"{amount:g} {name}{plural}"


def _labels(labels: Mapping[str, str]) -> str:
    return f"label{'s' if len(labels) > 1 else ''} " + ", ".join(f"{key}={want}" for key, want in labels.items())


def _matches(have: str | None, want: str) -> bool:
    """Ray's four forms: ``a``, ``!a``, ``in(a,b)``, ``!in(a,b)``."""
    if want.startswith("!"):
        return not _matches(have, want[1:])
    if want.startswith("in(") and want.endswith(")"):
        return have in [choice.strip() for choice in want[3:-1].split(",")]
    return have == want
