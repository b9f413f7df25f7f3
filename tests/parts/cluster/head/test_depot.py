"""What the head hands out: wheels that pip takes, the same bytes each time, pins, and an order for each node."""

import asyncio
import base64
import csv
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from cluster.bootstrap.order import File, Order
from cluster.head.depot import Assignment, HeadDepot, constraints, torch_version
from cluster.head.wheel import installed, wheel_of
from cluster.mesh.registry import Node

ROOT = Path(__file__).parents[4]
PACKAGES = ("cluster", "deployments", "serve_app")


def ours(folder: Path) -> Path:
    return wheel_of(installed("video-api"), PACKAGES, folder)


def test_our_wheel_is_what_is_in_the_source_tree(tmp_path: Path) -> None:
    with zipfile.ZipFile(ours(tmp_path)) as wheel:
        names = set(wheel.namelist())
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.suffix in (".py", ".sql", ".mako"):
                assert path.relative_to(ROOT).as_posix() in names
    assert not any("__pycache__" in name or name.startswith(("tests", "configs")) for name in names)


def test_its_record_is_right_and_its_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    path = ours(tmp_path / "a")
    assert path.read_bytes() == ours(tmp_path / "b").read_bytes()
    with zipfile.ZipFile(path) as wheel:
        (record,) = [name for name in wheel.namelist() if name.endswith("/RECORD")]
        rows = list(csv.reader(io.StringIO(wheel.read(record).decode())))
        assert {row[0] for row in rows} == set(wheel.namelist())
        for name, digest, size in rows:
            if name != record:
                content = wheel.read(name)
                found = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
                assert (digest, int(size)) == (f"sha256={found}", len(content))


def test_pip_installs_it_with_its_program(tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, ours(tmp_path)]
    subprocess.run([*command, "--no-compile"], check=True, capture_output=True)
    (found,) = metadata.distributions(name="video-api", path=[str(target)])
    assert found.version == metadata.version("video-api")
    assert found.requires == metadata.requires("video-api")
    assert (target / "bin" / "video-api").exists()


def test_a_single_module_is_a_wheel_as_well(tmp_path: Path) -> None:
    wheel = wheel_of(metadata.distribution("typing-extensions"), ["typing_extensions"], tmp_path)
    assert "typing_extensions.py" in zipfile.ZipFile(wheel).namelist()


def test_a_head_without_its_repository_pins_what_it_has(tmp_path: Path) -> None:
    assert constraints(ROOT / "constraints.txt") == (ROOT / "constraints.txt").read_text()
    lines = constraints(tmp_path / "none").splitlines()
    assert f"structlog=={metadata.version('structlog')}" in lines
    assert not any(line.startswith("video-api=") for line in lines)


def test_the_torch_of_nodes_is_the_one_that_we_require() -> None:
    assert torch_version(["ray", 'torch==2.13.0; extra == "gpu"']) == "2.13.0"
    with pytest.raises(LookupError):
        torch_version(["ray", 'torch>=2; extra == "gpu"', "torchvision==1.0"])


async def test_each_node_gets_its_own_order_and_all_the_same_files(tmp_path: Path) -> None:
    wheelhouse = tmp_path / "wheelhouse"
    wheel_of(metadata.distribution("structlog"), ["structlog"], wheelhouse)

    async def describe(node: Node) -> Assignment:
        return Assignment(environment={"X": node.name}, arguments=("--instance", node.name))

    depot = HeadDepot(describe=describe, folder=tmp_path / "depot", wheelhouse=wheelhouse)
    nodes = [Node(slot, f"rental-{slot}", bytes(32), None) for slot in (2, 3)]
    for node in nodes:
        text = await depot.open(node, "config.json")
        assert isinstance(text, bytes)
        order = Order.parse(text)
        assert (order.environment, order.arguments) == ({"X": node.name}, ("--instance", node.name))
        assert (order.requirement, order.version) == ("video-api[gpu]", metadata.version("video-api"))
        assert order.no_index
        assert [file.name.partition("-")[0] for file in order.files] == ["constraints.txt", "structlog", "video_api"]
    for file in order.files:
        path = await depot.open(nodes[0], file.name)
        assert isinstance(path, Path)
        content = path.read_bytes()
        assert file == File(file.name, len(content), hashlib.sha256(content).hexdigest())
    assert await depot.open(nodes[0], "../constraints.txt") is None
    assert await depot.open(nodes[0], "install.pyz") == tmp_path / "depot" / "install.pyz"


async def test_a_depot_without_a_wheelhouse_leaves_the_rest_to_the_index(tmp_path: Path) -> None:
    async def describe(node: Node) -> Assignment:
        return Assignment()

    depot = HeadDepot(describe=describe, folder=tmp_path)
    asked = await asyncio.gather(*(depot.open(Node(2, "x", bytes(32), None), "config.json") for _ in range(3)))
    assert {json.loads(text)["no_index"] for text in asked if isinstance(text, bytes)} == {False}


async def test_what_could_not_be_made_is_tried_again(tmp_path: Path) -> None:
    async def describe(node: Node) -> Assignment:
        return Assignment()

    folder = tmp_path / "depot"
    folder.write_text("in the way")
    depot = HeadDepot(describe=describe, folder=folder)
    node = Node(2, "x", bytes(32), None)
    with pytest.raises(OSError, match="depot"):
        await depot.open(node, "config.json")
    folder.unlink()
    assert await depot.open(node, "config.json")
