"""Why no node takes a replica, in words."""

import pytest

from serve_app.serving.placement import Node, could_take, why_no_node_fits

LAPTOP = Node(total={"CPU": 2.0, "memory": 8 * 2**30}, free={"CPU": 1.0, "memory": 8 * 2**30}, labels={})
HEAD = Node(total={"CPU": 0.0}, free={}, labels={"role": "head"})
A100 = Node(total={"CPU": 6, "GPU": 1}, free={"CPU": 5.0, "GPU": 0.0}, labels={"gpu-class": "a100"})
RTX = Node(total={"CPU": 4, "GPU": 1}, free={"CPU": 4, "GPU": 1}, labels={"gpu-class": "4090"})


@pytest.mark.parametrize(
    ("needs", "labels", "nodes", "why"),
    [
        ({"CPU": 1}, {}, [LAPTOP], None),
        ({"CPU": 2.0}, {}, [LAPTOP], "needs 2 CPUs, 1 free"),
        ({"CPU": 8}, {}, [LAPTOP], "needs 8 CPUs, a node has 2"),
        ({"CPU": 1}, {}, [], "no node is here"),
        ({"CPU": 1, "GPU": 1}, {}, [LAPTOP, HEAD], "no node with a GPU is here"),
        ({"CPU": 1, "GPU": 4}, {}, [A100], "no node with 4 GPUs is here"),
        ({"GPU": 1}, {"gpu-class": "a100"}, [HEAD, RTX], "no node with a GPU and label gpu-class=a100 is here"),
        ({"CPU": 1}, {"gpu-class": "a100"}, [LAPTOP], "no node with label gpu-class=a100 is here"),
        ({"GPU": 1, "CPU": 1}, {"gpu-class": "a100"}, [HEAD, A100, RTX], "needs 1 GPU, 0 free"),
        ({"GPU": 1, "CPU": 1}, {"gpu-class": "4090"}, [HEAD, A100, RTX], None),
        ({"GPU": 1, "CPU": 6}, {}, [A100], "needs 6 CPUs, 5 free; 1 GPU, 0 free"),
        ({"CPU": 1, "memory": 16 * 2**30}, {}, [LAPTOP], f"needs 16.0 GiB of memory, a node has {8 * 2**30:g}"),
    ],
)
def test_what_is_missing_is_named(needs: dict, labels: dict, nodes: list[Node], why: str | None) -> None:
    assert why_no_node_fits(needs, labels, nodes) == why


@pytest.mark.parametrize(
    ("want", "fits"),
    [
        ("a100", True),
        ("4090", False),
        ("!4090", True),
        ("!a100", False),
        ("in(a100, h100)", True),
        ("!in(a100)", False),
    ],
)
def test_selectors_mean_what_they_mean_to_ray(want: str, fits: bool) -> None:
    free = Node(total={"CPU": 1}, free={"CPU": 1}, labels={"gpu-class": "a100"})
    assert (why_no_node_fits({"CPU": 1}, {"gpu-class": want}, [free]) is None) == fits


def test_a_node_is_one_for_a_replica_although_another_has_it() -> None:
    needs = {"CPU": 1, "GPU": 1}
    assert [could_take(needs, {"gpu-class": "a100"}, node) for node in (A100, RTX, HEAD)] == [True, False, False]
    assert not could_take({**needs, "memory": 2**40}, {}, A100)
