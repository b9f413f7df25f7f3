"""Ray's provider of nodes and the launcher's socket, as Ray uses them: from threads, with nobody at the other end."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import yaml
from ray.autoscaler.tags import TAG_RAY_LAUNCH_REQUEST, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from structlog.testing import capture_logs

from cluster.autoscaler.configuration import BY_HAND, HEAD_ID, Autoscaling, BadClusterConfig, ClusterConfig
from cluster.autoscaler.exchange import MOST_BYTES, MOST_WISHES, Wishes
from cluster.autoscaler.link import WishLink
from cluster.autoscaler.provider import FleetNodeProvider
from cluster.autoscaler.server import WishServer
from cluster.fleet.limits import STEPS_S, Limits
from cluster.fleet.slots import Node

ROOT = Path(__file__).parents[4]
TYPE = "gpu_4090"


class Slots:
    """Two of the type at most, beside a node that joined by hand."""

    def __init__(self) -> None:
        self.there: dict[str, str] = {}
        self.said = asyncio.Event()
        self.asked = 0

    def add(self, slot_id: str, node_type: str) -> bool:
        self.asked += 1
        self.said.set()
        if slot_id in self.there:
            return True
        if node_type != TYPE or len(self.there) == 2:
            return False
        self.there[slot_id] = node_type
        return True

    def dismiss(self, node_id: str) -> bool:
        self.said.set()
        return self.there.pop(node_id, None) is not None

    def nodes(self) -> Sequence[Node]:
        by_hand = Node(id="hand-1", node_type=BY_HAND)
        return [by_hand, *(Node(id=name, node_type=node_type) for name, node_type in self.there.items())]


@pytest.fixture
async def fleet() -> Slots:
    return Slots()


@pytest.fixture
async def server(fleet: Slots) -> AsyncIterator[WishServer]:
    async with WishServer(fleet, [os.geteuid()]) as running:
        yield running


async def provider(path: Path) -> FleetNodeProvider:
    return await asyncio.to_thread(FleetNodeProvider, {"socket": str(path)}, "video-api")


async def until(true: Callable[[], bool]) -> None:
    """The link's thread takes a turn each second."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what changes is another thread
            await asyncio.sleep(0.02)


def create(ray: FleetNodeProvider, count: int, node_type: str = TYPE) -> list[str]:
    tags = {TAG_RAY_USER_NODE_TYPE: node_type, TAG_RAY_LAUNCH_REQUEST: "request-7", TAG_RAY_NODE_KIND: "worker"}
    return list(ray.create_node_with_resources_and_labels({}, tags, count, {"GPU": 1}, {}))


async def test_what_ray_creates_is_there_at_once_and_known_to_the_fleet(fleet: Slots, server: WishServer) -> None:
    ray = await provider(server.path)
    assert set(ray.non_terminated_nodes({})) == {HEAD_ID, "hand-1"}
    made = create(ray, 2)
    assert set(ray.non_terminated_nodes({TAG_RAY_USER_NODE_TYPE: TYPE})) == set(made)
    assert ray.node_tags(made[0])[TAG_RAY_LAUNCH_REQUEST] == "request-7"
    await until(lambda: set(fleet.there) == set(made))
    ray.terminate_nodes([made[0]])
    assert ray.is_terminated(made[0])
    await until(lambda: list(fleet.there) == [made[1]])
    assert ray.non_terminated_nodes({TAG_RAY_NODE_KIND: "head"}) == [HEAD_ID]
    assert ray.node_tags("nobody's") == {}


async def test_a_list_that_is_asked_for_while_a_node_is_created_costs_it_no_tag(
    server: WishServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray knows its request again by a tag: without it, it would ask for the same node once more."""
    ray = await provider(server.path)
    add = ray._link.add

    def listed_meanwhile(slot_id: str, node_type: str) -> None:
        other = threading.Thread(target=ray.non_terminated_nodes, args=({},))
        other.start()
        # It has its turn at once, or not before the node is there.
        other.join(0.5)
        add(slot_id, node_type)
        listing.append(other)

    listing: list[threading.Thread] = []
    monkeypatch.setattr(ray._link, "add", listed_meanwhile)
    (made,) = await asyncio.to_thread(create, ray, 1)
    await asyncio.to_thread(listing[0].join)
    assert ray.node_tags(made)[TAG_RAY_LAUNCH_REQUEST] == "request-7"


async def test_what_the_fleet_refuses_or_has_ended_is_gone(fleet: Slots, server: WishServer) -> None:
    ray = await provider(server.path)
    made = create(ray, 3)
    await until(lambda: len(fleet.there) == 2)
    await until(lambda: len(ray.non_terminated_nodes({})) == 4)
    assert create(ray, 1, "gpu_unheard_of")
    await until(lambda: len(ray.non_terminated_nodes({})) == 4)
    del fleet.there[made[0]]
    await until(lambda: ray.is_terminated(made[0]))


async def test_a_node_that_joined_by_hand_can_not_be_ended(fleet: Slots, server: WishServer) -> None:
    ray = await provider(server.path)
    ray.terminate_node("hand-1")
    async with asyncio.timeout(10):
        await fleet.said.wait()
    await until(lambda: ray.is_running("hand-1"))


async def test_without_a_launcher_all_stays_as_it_was_and_wishes_are_kept(fleet: Slots) -> None:
    async with WishServer(fleet, [os.geteuid()]) as server:
        path = server.path
        ray = await provider(path)
        (first,) = create(ray, 1)
        await until(lambda: first in fleet.there)
    # Nobody listens any more, there is not even a file.
    (second,) = create(ray, 1)
    assert set(ray.non_terminated_nodes({})) == {HEAD_ID, "hand-1", first, second}
    path.parent.mkdir()
    try:
        listening = await asyncio.start_unix_server(lambda reader, writer: writer.transport.abort(), path)
        listening.close()
        assert second in ray.non_terminated_nodes({})
    finally:
        path.unlink(missing_ok=True)
        path.parent.rmdir()


class Endless(Slots):
    """Of any type, as many as are asked for."""

    def add(self, slot_id: str, node_type: str) -> bool:
        self.asked += 1
        self.there[slot_id] = node_type
        return True


async def test_more_wishes_than_fit_into_a_line_are_told_one_line_after_the_other(tmp_path: Path) -> None:
    fleet, path = Endless(), tmp_path / "late.sock"
    link = WishLink(path)
    for number in range(MOST_WISHES + 200):
        link.add(f"slot-{number}", TYPE)
    # Of these nobody has heard, and nobody needs to.
    for number in range(100):
        link.dismiss(f"slot-{number}")
    wanted = {f"slot-{number}" for number in range(100, MOST_WISHES + 200)}
    assert set(link.nodes) == wanted
    async with WishServer(fleet, [os.geteuid()]) as server:
        path.symlink_to(server.path)
        await until(lambda: set(fleet.there) == wanted)
        await until(lambda: "hand-1" in link.nodes)
        assert len(wanted) > MOST_WISHES
    path.unlink()
    for slot_id in wanted:
        link.dismiss(slot_id)
    async with WishServer(fleet, [os.geteuid()]) as server:
        path.symlink_to(server.path)
        await until(lambda: not fleet.there)
        await until(lambda: set(link.nodes) == {"hand-1"})


async def test_what_may_have_been_told_is_taken_back_by_telling(tmp_path: Path) -> None:
    """A launcher that ends before it answers may have passed it on."""
    fleet, path, heard = Endless(), tmp_path / "late.sock", asyncio.Event()
    link = WishLink(path)
    link.add("slot-1", TYPE)

    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fleet.there |= Wishes.model_validate_json(await reader.readline()).add
        heard.set()
        writer.transport.abort()

    listening = await asyncio.start_unix_server(end, path)
    async with asyncio.timeout(20):
        await heard.wait()
    listening.close()
    path.unlink(missing_ok=True)
    link.dismiss("slot-1")
    assert list(fleet.there) == ["slot-1"]
    async with WishServer(fleet, [os.geteuid()]) as server:
        path.symlink_to(server.path)
        await until(lambda: not fleet.there)
        await until(lambda: set(link.nodes) == {"hand-1"})


async def test_nodes_of_a_launcher_that_is_slow_to_answer_are_in_ray_s_first_list(fleet: Slots, tmp_path: Path) -> None:
    """Ray would take one that it knows and that is not there for ended, and never end it again."""
    late, asked = tmp_path / "late.sock", 0

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.transport.abort()

    listening = await asyncio.start_unix_server(hang_up, late)
    making = asyncio.create_task(provider(late))
    await until(lambda: asked == 4 or making.done())
    listening.close()
    async with WishServer(fleet, [os.geteuid()]) as server:
        late.unlink(missing_ok=True)
        late.symlink_to(server.path)
        ray = await making
    assert set(ray.non_terminated_nodes({})) == {HEAD_ID, "hand-1"}


async def test_strangers_and_nonsense_are_hung_up_on(fleet: Slots) -> None:
    async with WishServer(fleet, [os.geteuid() + 1]) as server:
        reader, writer = await asyncio.open_unix_connection(server.path)
        writer.write(Wishes().model_dump_json().encode() + b"\n")
        assert await _rest(reader) == b""
        writer.close()
    async with WishServer(fleet, [os.geteuid()]) as server:
        for line in (b"{]\n", b'{"add": {"../../etc": "x"}}\n', b'{"add": {"a": "b"}, "rent": 1}\n', b"x" * (1 << 18)):
            reader, writer = await asyncio.open_unix_connection(server.path)
            writer.write(line)
            assert await _rest(reader) == b""
            writer.close()
        assert not fleet.there
        # It serves on, but not without end.
        held = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        for one in held:
            one.connect(str(server.path))
        reader, writer = await asyncio.open_unix_connection(server.path)
        assert await _rest(reader) == b""
        writer.close()
        for one in held:
            one.close()


async def test_who_sends_lines_without_end_takes_neither_the_launcher_s_time_nor_its_log(
    fleet: Slots, server: WishServer
) -> None:
    line = Wishes(add={f"slot-{number}": "unheard-of" for number in range(400)}).model_dump_json().encode() + b"\n"
    sending, stop = socket.socket(socket.AF_UNIX), threading.Event()
    sending.connect(str(server.path))

    def send() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                sending.sendall(line)

    thread = threading.Thread(target=send)
    with capture_logs() as logs:
        thread.start()
        reader, writer = await asyncio.open_unix_connection(server.path)
        answers = []
        for _ in range(10):
            writer.write(Wishes().model_dump_json().encode() + b"\n")
            # Whoever asks beside it waits for a line or two.
            async with asyncio.timeout(5):
                answers.append(await reader.readline())
        stop.set()
        sending.shutdown(socket.SHUT_RDWR)
        await asyncio.to_thread(thread.join)
    writer.close()
    sending.close()
    assert len(answers) == 10
    assert [(each["event"], each["slots"]) for each in logs if "slots" in each] == [("fleet.wish_refused", 400)]
    # Two lines at each turn.
    assert fleet.asked <= 400 * 40


async def test_who_says_nothing_keeps_no_place(
    fleet: Slots, server: WishServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.autoscaler.server._SILENT_S", 0.5)
    held = [await asyncio.open_unix_connection(server.path) for _ in range(8)]
    # They are all let in before anybody else is.
    answer = b""
    async with asyncio.timeout(20):
        while not answer:
            reader, writer = await asyncio.open_unix_connection(server.path)
            with contextlib.suppress(ConnectionError):
                writer.write(Wishes().model_dump_json().encode() + b"\n")
                answer = await reader.readline()
            writer.close()
            await asyncio.sleep(0.02)
    assert b"hand-1" in answer
    for reader, writer in held:
        assert await _rest(reader) == b""
        writer.close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


def test_ray_waits_for_a_node_longer_than_any_start_takes_and_not_for_ever() -> None:
    name = "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S"
    asked = "from ray.autoscaler.v2.instance_manager.config import InstanceReconcileConfig as config;"
    environment = {**os.environ, **Autoscaling.by(Path("x.yaml")).environment}
    command = [sys.executable, "-c", f"{asked} print(config.allocate_status_timeout_s)"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert environment[name] == told.strip()
    # Of the slowest line: to be rented, to pull, to fetch weights, and the rest.
    assert Limits().rent_s + 900 + 1800 + sum(STEPS_S.values()) < float(told) <= 86400


def test_the_cluster_s_yaml_with_our_provider(tmp_path: Path) -> None:
    config = ClusterConfig.read(ROOT / "configs/cluster.yaml")
    assert not config.provided
    assert set(config.node_types) == {"gpu_a100", "gpu_40gb", TYPE}
    assert config.node_types["gpu_a100"].labels["gpu-class"] == "a100"
    made = yaml.safe_load(config.of_fleet(Path("/run/x.sock")))
    assert made["provider"]["socket"] == "/run/x.sock"
    # As Ray's monitor reads it: what it does not understand ends it, and the whole head.
    (tmp_path / "made.yaml").write_text(config.of_fleet(Path("/run/x.sock")))
    read = FileConfigReader(str(tmp_path / "made.yaml"), skip_content_hash=True).get_cached_autoscaling_config()
    assert read.get_node_type_configs()[TYPE].labels["gpu-class"] == "4090"
    by_hand = made["available_node_types"][BY_HAND]
    # Ray neither starts one nor ends one.
    assert (by_hand["min_workers"], by_hand["resources"]) == (0, {})
    assert by_hand["idle_timeout_s"] > 86400 * 365
    for broken in ("- no mapping\n", "a: [\n"):
        path = tmp_path / "cluster.yaml"
        path.write_text(broken)
        with pytest.raises(BadClusterConfig):
            ClusterConfig.read(path)
    path.write_text("head_node_type: head\navailable_node_types: {gpu: {max_workers: many}}\n")
    with pytest.raises(BadClusterConfig, match="available_node_types"):
        _ = ClusterConfig.read(path).node_types
    # No wish for it could be told.
    for name in ("g" * 65, "é" * 33, "''"):
        path.write_text(
            f"head_node_type: head\navailable_node_types: {{{name}: {{max_workers: 1, node_config: {{}}}}}}\n"
        )
        with pytest.raises(BadClusterConfig, match="64 bytes"):
            _ = ClusterConfig.read(path).node_types


def test_as_many_wishes_as_there_may_be_fit_into_a_line() -> None:
    slots = [f"{number:064}" for number in range(MOST_WISHES)]
    line = Wishes(add=dict.fromkeys(slots, "g" * 64), dismiss=frozenset(slots)).model_dump_json()
    assert len(line) < MOST_BYTES
