"""What the head tells Ray, who may act as head, and what a waiting one answers."""

import asyncio
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import psycopg
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.constants import REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD

from cluster.autoscaler.configuration import Autoscaling
from cluster.briefing import BadBriefing, Briefing
from cluster.environment import ray_environment
from cluster.head.leader import LEADING, LeadershipLost, leading
from cluster.head.process import (
    DRAIN_S,
    SILENCE_S,
    Application,
    Head,
    PartLost,
    _silence,
    redis_environment,
    redis_flags,
)
from cluster.head.standby import Standby
from cluster.mesh.hub import Hub
from cluster.mesh.plan import HEAD
from cluster.node.machine import Gpus, Unfit, check_disk, check_gpus, host_labels, host_memory_gib
from serve_app.app import AppArgs
from serve_app.jobs import metrics
from serve_app.serving.deploy import environment_of, read_config
from serve_app.settings import Settings
from tests.fakes.heads import options_of_head
from tests.parts.serve_app.jobs.samples import eventually
from tests.ports import free_port

ROOT = Path(__file__).parents[3]


# ---------------------------------------------------------------- leadership


async def test_only_one_leads_and_the_next_follows_when_it_ends(database_url: str) -> None:
    order: list[str] = []
    asked = asyncio.Event()

    async def second() -> None:
        def on_wait(answered: bool) -> None:
            assert answered
            asked.set()

        async with leading(database_url, on_wait):
            order.append("second")

    async with leading(database_url) as leadership:
        waiting = asyncio.create_task(second())
        await asyncio.wait_for(asked.wait(), 10)
        order.append("first ends")
        assert not leadership.lost.done()
    await asyncio.wait_for(waiting, 10)
    assert order == ["first ends", "second"]


async def test_a_leader_whose_connection_is_cut_learns_that_it_lost(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.head.leader.CHECK_S", 0.05)
    async with leading(database_url) as leadership:
        with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as db:
            db.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = %s::regclass", (LEADING,))
        with pytest.raises(LeadershipLost):
            await asyncio.wait_for(leadership.lost, 10)
        # Another may lead at once.
        async with leading(database_url):
            pass


@pytest.mark.own_database
async def test_two_first_heads_at_once(database_url: str) -> None:
    """The database has nothing yet, not even what they lock."""

    async def lead() -> None:
        async with leading(database_url):
            pass

    async with asyncio.timeout(20):
        await asyncio.gather(lead(), lead(), lead())


async def test_what_is_open_to_every_role_keeps_nobody_from_leading(database_url: str) -> None:
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as db:
        # Once it was the key of the lock.
        db.execute("SELECT pg_advisory_lock(%s)", (0x68656164,))
        async with asyncio.timeout(5), leading(database_url):
            pass


async def test_a_leader_holds_no_vacuum_up(database_url: str) -> None:
    async with leading(database_url):
        with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as db:
            found = db.execute(
                "SELECT backend_xid, backend_xmin FROM pg_stat_activity"
                " WHERE pid IN (SELECT pid FROM pg_locks WHERE relation = %s::regclass)",
                (LEADING,),
            ).fetchall()
    assert found == [(None, None)]


async def test_a_database_that_is_away_is_waited_for() -> None:
    answers: list[bool] = []
    tried_again = asyncio.Event()
    url = f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none"

    def note(asked: bool) -> None:
        answers.append(asked)
        if len(answers) == 2:
            tried_again.set()

    async def lead() -> None:
        async with leading(url, note):
            raise AssertionError("nobody can lead without a lock")

    waiting = asyncio.create_task(lead())
    await asyncio.wait_for(tried_again.wait(), 30)
    assert not waiting.done()
    assert not any(answers)
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_a_head_that_waits_is_healthy_only_if_the_lock_is_all_it_lacks() -> None:
    port = free_port()
    async with Standby(port, "127.0.0.1") as standby, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        assert (await http.get("/health")).status_code == 503
        standby.fit = True
        assert (await http.get("/health?deep=1")).json() == {"api": "standby"}
        refused = await http.post("/api/v1/generate", json={"model": "ltx2"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01 not http\r\n\r\n")
        assert (await http.get("/health")).status_code == 200
        writer.close()


async def test_a_waiting_head_ends_when_it_is_told_to(database_url: str, tmp_path: Path) -> None:
    def never() -> dict[str, str]:
        raise AssertionError("it does not lead")

    application = Application(prepare=never, deploy=lambda _: asyncio.sleep(0), count=metrics.count, data_dir=tmp_path)
    options = options_of_head(database_url=database_url, http_port=free_port())
    head = Head(application, options)
    stop = asyncio.Event()
    async with leading(database_url), httpx.AsyncClient(base_url=f"http://127.0.0.1:{options.http_port}") as http:
        running = asyncio.create_task(head.run(stop))

        async def says_that_it_is_fit() -> bool:
            try:
                return (await http.get("/health")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(says_that_it_is_fit)
        stop.set()
        await asyncio.wait_for(running, 30)


async def test_a_head_whose_hub_has_failed_ends(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ray:
        exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def stop(self) -> None:
            pass

    async def start_ray(*_: object) -> Ray:
        return Ray()

    async def fail(_: object) -> None:
        raise ZeroDivisionError

    async def deploy(_: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Head, "_start_ray", start_ray)
    monkeypatch.setattr(Hub, "_watch", fail)
    application = Application(prepare=lambda: {}, deploy=deploy, count=metrics.count, data_dir=tmp_path)
    head = Head(application, options_of_head(database_url=database_url, http_port=free_port(), mesh_port=free_port()))
    with pytest.raises(PartLost, match="hub"):
        await asyncio.wait_for(head.run(asyncio.Event()), 20)


# ---------------------------------------------------------------- watchdog


async def test_an_answer_without_end_is_an_answer_and_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs code on Ray may answer in the place of the API."""
    asked, sent = 0, 0

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked, sent
        asked += 1
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                writer.write(bytes(1 << 16))
                sent += 1 << 16
                await writer.drain()
        writer.close()

    monkeypatch.setattr("cluster.head.process.ASK_S", 0.05)
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server, asyncio.timeout(30):
        port = server.sockets[0].getsockname()[1]
        # From one question to the next, more than half of the time passes for which it may be silent.
        silent = asyncio.create_task(_silence(port, clock=lambda: 0.6 * SILENCE_S * asked))
        while asked < 5 and not silent.done():  # noqa: ASYNC110 - it is asked by the network
            await asyncio.sleep(0.05)
        assert not silent.done()
        silent.cancel()
        # What the kernel takes in.
        assert sent / asked < 32 << 20


async def test_silence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.head.process.ASK_S", 0.05)
    monkeypatch.setattr("cluster.head.process.SILENCE_S", 0.3)
    await asyncio.wait_for(_silence(free_port()), 30)


# ---------------------------------------------------------------- briefing


def test_a_node_learns_what_its_head_is() -> None:
    told = Briefing.of_this_head("secret", "1.2.3")
    heard = Briefing.parse(told.text())
    assert heard == told
    assert heard.mismatch("1.2.3") is None
    assert "secret" not in repr(heard)
    assert heard.address == f"{HEAD.address}:{HEAD.gcs}"


def test_a_node_of_other_versions_is_no_node() -> None:
    told = Briefing.of_this_head("t", "1.2.3")
    assert "Ray is" in str(dataclasses.replace(told, ray="2.0.0").mismatch("1.2.3"))
    assert "Python is" in str(dataclasses.replace(told, python="3.8").mismatch("1.2.3"))
    assert told.mismatch("1.2.4") == "video-api is 1.2.4 here and 1.2.3 there"


def test_a_head_that_tells_no_version_is_of_another_one() -> None:
    told = json.loads(Briefing.of_this_head("t", "1.2.3").text())
    del told["version"]
    heard = Briefing.parse(json.dumps(told).encode())
    assert heard.mismatch("1.2.3") == "video-api is 1.2.3 here and an older one there"


def test_what_a_later_head_tells_besides_does_not_hide_its_version() -> None:
    told = {**json.loads(Briefing.of_this_head("t", "2.0.0").text()), "new": [1]}
    heard = Briefing.parse(json.dumps(told).encode())
    assert heard.mismatch("1.2.3") == "video-api is 1.2.3 here and 2.0.0 there"


def test_a_head_tells_what_its_autoscaler_calls_nodes_and_an_older_one_does_not() -> None:
    told = Briefing.of_this_head("t", "1.2.3", "by_hand")
    assert Briefing.parse(told.text()).by_hand == "by_hand"
    older = json.loads(told.text())
    del older["by_hand"]
    assert Briefing.parse(json.dumps(older).encode()).by_hand == ""


@pytest.mark.parametrize("text", [b"", b'{"ray": "2', b"[]", b"{}", b'{"ray": "2", "odd": 1}', b"\xff"])
def test_nonsense_instead_of_a_briefing_is_an_error_to_retry(text: bytes) -> None:
    with pytest.raises(BadBriefing):
        Briefing.parse(text)
    assert issubclass(BadBriefing, OSError)


# ---------------------------------------------------------------- what Ray is told


def failures_in_a_row(timeout_s: float, period_s: float, first_at: float, cuts: list[tuple[float, float]]) -> int:
    """The most that Serve counts of a replica that is well, when its first check goes out at ``first_at`` and none that
    goes out within a cut is ever answered."""
    worst = row = 0
    sent = first_at
    while sent < cuts[-1][1]:
        lost = any(begin <= sent < end for begin, end in cuts)
        row = row + 1 if lost else 0
        worst = max(worst, row)
        # The next one goes out with the end of this one, at the earliest a period after it.
        sent += max(timeout_s, period_s) if lost else period_s
    return worst


@given(phase=st.floats(0, 1), jitter=st.floats(0.9, 1.1), gap_s=st.floats(1, 40))
def test_two_minutes_without_a_link_close_to_each_other_kill_no_replica(
    phase: float, jitter: float, gap_s: float
) -> None:
    """A check that is lost at the end of the first cut takes its whole time limit, which may end in the second cut."""
    back_s = 10  # The mesh and Ray's connections, after a link.
    cuts = [(0.0, 60.0 + back_s), (60.0 + gap_s, 120.0 + gap_s + back_s)]
    for each in yaml.safe_load((ROOT / "configs/production.yaml").read_text())["applications"][0]["deployments"]:
        timeout_s, period_s = each["health_check_timeout_s"], jitter * each["health_check_period_s"]
        found = failures_in_a_row(timeout_s, period_s, phase * period_s, cuts)
        assert found < REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD
        # Else one reset of the link is taken for the death of every replica behind it.
        assert int(ray_environment("t", 1)["RAY_timeout_ms_task_wait_for_death_info"]) > 1000 * timeout_s


def test_ray_s_token_is_no_argument() -> None:
    assert ray_environment("token", 5)["RAY_AUTH_TOKEN"] == "token"
    assert ray_environment("token", 5)["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize(
    ("url", "address", "flags"),
    [
        ("", None, []),
        ("redis://cache.internal", "cache.internal:6379", []),
        ("redis://default:pw@host:7000/0", "host:7000", ["--redis-username=default", "--redis-password=pw"]),
        ("rediss://:pw@host:7000", "rediss://host:7000", ["--redis-password=pw"]),
    ],
)
def test_redis_by_url(url: str, address: str | None, flags: list[str]) -> None:
    assert redis_environment(url).get("RAY_REDIS_ADDRESS") == address
    assert redis_flags(url) == flags


def test_ray_is_told_of_a_provider() -> None:
    found = Autoscaling.by(ROOT / "configs/cluster.yaml")
    assert found.flags == (f"--autoscaling-config={ROOT}/configs/cluster.yaml",)
    assert found.environment["RAY_enable_autoscaler_v2"] == "1"


def test_secrets_of_the_cluster_follow_from_one_and_differ() -> None:
    one = Settings(webhook_secret="a" * 32)
    other = Settings(webhook_secret="a" * 32, cluster_secret="b" * 32)
    found = {one.ray_token, other.ray_token, one.mesh_secret.hex(), other.mesh_secret.hex()}
    assert len(found) == 4
    assert Settings(webhook_secret="c" * 32, cluster_secret="b" * 32).ray_token == other.ray_token


def test_a_lease_in_production_outlives_a_minute_without_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "WEBHOOK_SECRET"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("PUBLIC_URL", "https://video.example.com")
    monkeypatch.setenv("DATABASE_URL", "postgresql://x")
    assert Settings.load("production").lease_seconds >= 180
    monkeypatch.setenv("LEASE_SECONDS", "45")
    assert Settings.load("production").lease_seconds == 45


# ---------------------------------------------------------------- the machine


def test_gpus_as_promised() -> None:
    pair = Gpus(("A100", "A100"), 79.2)
    assert (check_gpus(pair, None), check_gpus(pair, 1), pair.kind) == (2, 1, "a100")
    assert Gpus(("RTX 4090",), 24).kind == "4090"
    assert Gpus().kind is None
    for found, promised in ((pair, 3), (Gpus(), None), (Gpus(), 1)):
        with pytest.raises(Unfit, match="GPUs are here"):
            check_gpus(found, promised)


@pytest.mark.parametrize(
    ("gib", "held"),
    # H100, A100 of 80 and of 40 GB, H200; RTX A6000, L40S with error correction; RTX 4090; L4.
    [
        (79.6, "80"),
        (81920 / 1024, "80"),
        (39.6, "40"),
        (141, "80"),
        (47.99, "48"),
        (44.99, "40"),
        (23.6, "24"),
        (22.5, None),
    ],
)
def test_a_card_is_of_the_largest_class_that_it_holds(gib: float, held: str | None) -> None:
    assert Gpus(("a card",), gib).labels.get("gpu-memory") == held
    assert Gpus().labels == {}


def test_a_host_has_what_its_container_may_use(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1073741824\n")
    assert host_memory_gib(limit) == 1
    limit.write_text("max\n")
    whole = host_memory_gib(limit)
    assert whole == host_memory_gib(tmp_path / "none") > 1
    assert [host_labels(gib) for gib in (200, 60, 3)] == [{"host-memory": "128"}, {"host-memory": "64"}, {}]


def test_a_full_disk_is_unfit(tmp_path: Path) -> None:
    check_disk(tmp_path / "new", 0.001)
    with pytest.raises(Unfit, match="GiB left"):
        check_disk(tmp_path, 10**6)


# ---------------------------------------------------------------- deployment files


def test_production_is_what_the_application_takes() -> None:
    wanted = read_config(ROOT / "configs/production.yaml")
    assert environment_of(wanted) == "production"
    application = wanted["applications"][0]
    args = AppArgs.model_validate(application["args"])
    models = {each["name"]: each["ray_actor_options"] for each in application["deployments"]}
    assert set(models) == set(args.max_replicas) == {each.name for each in args.deployments}
    assert all(options["num_gpus"] == 1 for options in models.values())
    assert models["ltx2"]["label_selector"] == {"gpu-class": "a100"}
    assert models["wav2lip"]["label_selector"] == {"gpu-class": "4090"}


def test_what_the_images_copy_exists_and_is_not_ignored() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    sources = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in kept, source
    targets = [line.split()[-1] for line in lines if line.startswith("FROM ")]
    assert {"head", "gpu"} <= set(targets)
    # Railway builds the last one.
    assert targets[-1] == "head"


def test_railway_s_file_is_what_railway_reads() -> None:
    found = tomllib.loads((ROOT / "railway.toml").read_text())
    assert (ROOT / found["build"]["dockerfilePath"]).exists()
    assert found["deploy"]["healthcheckPath"] == "/health"
    config = found["deploy"]["startCommand"].split("--config ")[1]
    assert (ROOT / config).exists()
    # Railway's own grace: Ray's drain and end have to fit.
    assert float(found["deploy"]["drainingSeconds"]) > DRAIN_S


def test_the_head_s_configuration_fails_before_anything_starts() -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("API_KEY", "DATABASE_URL", "PUBLIC_URL")}
    done = subprocess.run(
        [sys.executable, "-m", "serve_app.cli", "head"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    for name in ("API_KEY", "DATABASE_URL", "PUBLIC_URL"):
        assert name in done.stderr
