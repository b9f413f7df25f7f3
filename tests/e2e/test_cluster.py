"""A head with one port, nodes that can only dial out: real jobs over it, links that are cut, a head that dies.

Written for one cluster, in this order; each test leaves it whole.
"""

import asyncio
import json
import pwd
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.mesh.plan import HEAD, slot
from serve_app.cli import samples
from serve_app.serving.deploy import deploy, read_config
from tests.e2e.cluster import LAUNCHERS, PRIVATE, PYTHONS, RAY_USER, Cluster, Inside, version_of, wait_until
from tests.e2e.container import ROOT, Container
from tests.fakes.netns import PUBLIC_PORT

GPU1, GPU2 = slot(2).address, slot(3).address
SHORT = {"duration": 1, "width": 192, "height": 128}
#: Computes for about a minute on two cores.
LONG = {"duration": 10, "recipe": "quality", "width": 512, "height": 320}
CUT_S = 60
#: The issue's bar: a service that works again so long after its link.
BACK_S = 30


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("samples")
    made = {kind: samples.make(kind, folder) for kind in ("image", "video", "audio")}
    return {kind: path for kind, path in made.items() if path is not None}


@pytest.fixture(scope="module")
def make(cluster: Cluster, inputs: dict[str, Path]) -> Callable[..., str]:
    """Submit a job of that model; its id."""
    kinds = {"ltx2": ("image",), "wav2lip": ("video", "audio")}
    return lambda model, **params: cluster.submit(model, {kind: inputs[kind] for kind in kinds[model]}, **params)


def pids(cluster: Cluster) -> dict[str, list[int]]:
    return {model: [replica["pid"] for replica in cluster.replicas(model)] for model in ("ltx2", "wav2lip")}


def reaches(cluster: Cluster, machine: str, host: str, port: int) -> bool:
    with cluster.network.socket(machine) as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, port)) == 0


def in_the_middle(cluster: Cluster, job_id: str) -> None:
    cluster.wait(job_id, lambda job: job["status"] == "processing" and job["progress"] > 12)


def test_three_machines_are_one_cluster_and_no_machine_reaches_another(cluster: Cluster) -> None:
    assert set(cluster.ray_nodes()) == {HEAD.address, GPU1, GPU2}
    assert cluster.ray_nodes()[GPU1]["labels"]["gpu-class"] == "a100"
    net = cluster.network
    assert reaches(cluster, "gpu1", net.hub_address("gpu1"), PUBLIC_PORT)
    for host, port in ((net.address("head"), PUBLIC_PORT), (net.address("head"), HEAD.gcs), (net.address("gpu2"), 22)):
        assert not reaches(cluster, "gpu1", host, port)
    assert not reaches(cluster, "head", net.address("gpu1"), slot(2).node_manager)


def test_a_node_says_when_it_can_take_work(cluster: Cluster) -> None:
    def steps(node: Container) -> list[str]:
        return [json.loads(line)["step"] for line in node.log().splitlines() if '"node.step"' in line]

    for node in (cluster.gpu1, cluster.gpu2):
        wait_until("Ray to be up", lambda node=node: steps(node) == ["joining", "idle"], 60)


def test_each_model_runs_on_the_node_of_its_class(cluster: Cluster, make: Callable[..., str]) -> None:
    jobs = [make("ltx2", **SHORT), make("wav2lip")]
    for job in (cluster.wait(job_id) for job_id in jobs):
        assert (job["status"], job["attempt"]) == ("completed", 1), job
        video = cluster.api.get(job["result_url"])
        assert video.content[4:8] == b"ftyp"
    assert [replica["node_ip"] for replica in cluster.replicas("ltx2")] == [GPU1]
    assert [replica["node_ip"] for replica in cluster.replicas("wav2lip")] == [GPU2]


def test_logs_and_state_of_remote_nodes_are_reachable(cluster: Cluster) -> None:
    for model, address in (("ltx2", GPU1), ("wav2lip", GPU2)):
        (replica,) = cluster.replicas(model)
        listed = cluster.dashboard.get("/api/v0/logs", params={"node_id": replica["node_id"]}).json()
        assert listed["result"], listed
        where = {"node_id": replica["node_id"], "filename": f"serve{replica['log_file_path'].split('serve', 1)[1]}"}
        text = cluster.dashboard.get("/api/v0/logs/file", params={**where, "lines": 100})
        assert text.status_code == 200, text.text
        node = cluster.dashboard.get(f"/nodes/{replica['node_id']}").json()["data"]["detail"]
        # Measured there, sent by the dashboard's agent on that node.
        assert node["ip"] == address
        assert node["cpu"] is not None


def test_nodes_for_the_operator(cluster: Cluster) -> None:
    def moved() -> list[dict[str, Any]] | None:
        rows = [row for row in cluster.command("nodes") if row["state"] == "up" and row["bytes_out"] > 10_000]
        return rows if len(rows) == 2 else None

    rows = wait_until("traffic in the registry", moved, 40)
    assert [(row["slot"], row["name"]) for row in rows] == [(2, "gpu1"), (3, "gpu2")]
    metrics = cluster.api.get("/metrics").text.splitlines()
    (flows,) = (line for line in metrics if line.startswith("video_mesh_flows_total "))
    assert float(flows.split()[1]) > 0


def test_a_node_reaches_nothing_else_of_the_head_and_nothing_of_other_nodes(cluster: Cluster) -> None:
    """With its credentials and Ray's token: by its own listeners, by the mesh's protocol, and by any address."""
    net, node = cluster.network, cluster.gpu1
    (credentials,) = (node.folder / "state").glob("node-*.json")
    hub = f"{net.hub_address('gpu1')}:{PUBLIC_PORT}"
    knocked = cluster.run(node, "-m", "tests.e2e.intruder", "knock", hub, str(credentials))
    assert {tuple(place) for place in knocked["listened"]} == {(1, port) for port in HEAD.forwarded}
    carried = {tuple(place) for place in knocked["carried"]}
    assert {(1, port) for port in (HEAD.gcs, HEAD.node_manager, HEAD.http, HEAD.briefing)} <= carried
    assert carried <= {(1, port) for port in (*HEAD.forwarded, HEAD.briefing)}
    # So neither the dashboard, which starts jobs, nor the client server, nor any agent. And by no other way:
    for port in PRIVATE:
        for address in {net.gateway("gpu1"), net.gateway("head"), net.address("head"), HEAD.address}:
            assert not reaches(cluster, "gpu1", address, port)


def test_code_on_the_head_learns_nothing_of_the_launcher(cluster: Cluster) -> None:
    """Any node may run code on the head, by Ray's design. It finds what the service needs there, and no more."""
    found = cluster.run(cluster.gpu1, "-m", "tests.e2e.intruder", "pry", GPU1)
    head, node = found["head"], found["node"]
    assert head["uid"] == pwd.getpwnam(RAY_USER).pw_uid
    assert set(map(tuple, head["launcher"].values())) == {("PermissionError",)}
    assert head["be_root"] == "PermissionError"
    for folder in (cluster.head.folder / "ray", Path(cluster.environment["VIDEO_API_DATA_DIR"])):
        assert (folder.stat().st_uid, stat.S_IMODE(folder.stat().st_mode)) == (head["uid"], 0o700)
    # Said in docs/security.md.
    assert {"API_KEY", "DATABASE_URL", "WEBHOOK_SECRET", "RAY_AUTH_TOKEN"} <= head["variables"].keys()
    # Where Redis is, for /health to ask whether it answers; Ray has the password as an argument of its own.
    assert "@" not in head["variables"]["RAY_REDIS_ADDRESS"]
    assert not {"REDIS_URL", "MESH_PORT", *LAUNCHERS} & head["variables"].keys()
    # On a node Ray's processes are root's, as the one that started them; its memory is closed to them all the same.
    assert {outcome for name, outcomes in node["launcher"].items() if name != "signal" for outcome in outcomes} == {
        "PermissionError"
    }, node["launcher"]
    assert not {"MESH_TOKEN", "API_KEY", "DATABASE_URL", "WEBHOOK_SECRET", *LAUNCHERS} & node["variables"].keys()
    for place in (head, node):
        assert not [secret for secret in LAUNCHERS.values() if secret in f"{place['seen']}{place['variables']}"]


def test_a_node_whose_python_differs_in_the_third_number_works(cluster: Cluster) -> None:
    """If this machine has such a Python, gpu2 is on it; Ray's workers there would end themselves at their start."""
    found = cluster.run(cluster.gpu2, "-m", "tests.e2e.intruder", "pry", GPU2)
    assert (found["head"]["python"], found["node"]["python"]) == (
        version_of(sys.executable),
        version_of(PYTHONS["gpu2"]),
    )


def test_a_model_scales_over_the_nodes_and_back_to_none(cluster: Cluster) -> None:
    """Though no node reaches another."""
    wanted = read_config(ROOT / "configs/production.yaml")
    more = {"name": "slow", "route_prefix": "/slow", "import_path": "tests.fakes.scaling:app"}

    def put(applications: list[dict[str, Any]]) -> None:
        with cluster.network.inside("head"):
            dashboard = f"http://{HEAD.address}:{HEAD.dashboard}"
            asyncio.run(deploy({**wanted, "applications": applications}, dashboard, 120, cluster.ray_token))

    put([*wanted["applications"], more])
    try:
        with ThreadPoolExecutor(1) as caller:
            words = ("-m", "tests.fakes.scaling", f"{HEAD.address}:{HEAD.gcs}", "slow", "40")
            calling = caller.submit(cluster.run, cluster.head, *words)
            where = lambda: {replica["node_ip"] for replica in cluster.replicas("Slow", "slow")}  # noqa: E731
            wait_until("a replica on each node", lambda: where() == {GPU1, GPU2}, 90)
            assert {place.split()[0] for place in calling.result()} == {GPU1, GPU2}
        wait_until("no replica", lambda: not where(), 60)
    finally:
        put(wanted["applications"])


def test_metrics_and_status_of_all_nodes(cluster: Cluster) -> None:
    def has_figures(url: str) -> bool:
        with httpx.Client(transport=Inside(lambda: cluster.head)) as prometheus:
            return "ray_node_mem_used" in prometheus.get(url).text

    for number in (1, 2, 3):
        url = f"http://{slot(number).address}:{slot(number).metrics_export}/metrics"
        # An agent that has just begun has none yet.
        wait_until(url, partial(has_figures, url), 60)
    # One process that an agent may not look into, and it reports nothing of its node any more: figures must be new.
    begun = time.time()

    def new_ones() -> int:
        nodes = cluster.dashboard.get("/nodes?view=summary").json()["data"]["summary"]
        return sum(node.get("now", 0) > begun for node in nodes)

    wait_until("figures of three nodes", lambda: new_ones() == 3, 60)
    status = cluster.head.run(
        (sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={HEAD.address}:{HEAD.gcs}"),
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.ray_token},
    )
    assert status.returncode == 0, status.stderr
    assert sum(line.strip().startswith("1 node_") for line in status.stdout.splitlines()) == 3, status.stdout


def test_the_firewall_of_the_readme_leaves_the_head_s_two_ports(cluster: Cluster) -> None:
    """Ray binds most of its ports to every interface, and can't be told not to."""
    (rules,) = re.findall(r"^nft -f - <<'END'\n(.*?)^END$", (ROOT / "README.md").read_text(), re.M | re.S)
    net, head = cluster.network, cluster.network.address("head")
    sockets = net.run("head", "ss", "-Hltn").splitlines()
    places = [line.split()[3].rpartition(":") for line in sockets]
    everywhere = {int(port) for address, _, port in places if not address.startswith("127.")}
    meant = {PUBLIC_PORT, HEAD.http}
    assert meant < everywhere
    assert reaches(cluster, "internet", head, HEAD.gcs)
    net.run("head", "nft", rules)
    assert {port for port in everywhere if reaches(cluster, "internet", head, port)} == meant
    # The tests after this one have it, too.


def test_a_link_that_is_cut_for_a_minute(cluster: Cluster, make: Callable[..., str]) -> None:
    """Nothing comes through, and nobody says so. That connections are reset is told at once (`test_first_day.py`)."""
    net = cluster.network
    before = pids(cluster)
    job_id = make("ltx2", **LONG)
    in_the_middle(cluster, job_id)
    # At the head's cable, so for all nodes at once.
    net.black_hole("head", True, *PRIVATE)
    try:
        time.sleep(CUT_S)
        during = cluster.job(job_id)
        assert during["status"] == "processing", during
    finally:
        net.black_hole("head", False)
    mended = time.monotonic()
    # New work reaches the other node, and the running job is heard of again.
    other = make("wav2lip")
    cluster.wait(other, lambda job: job["status"] != "queued", BACK_S)
    now = ("stage", "progress")
    cluster.wait(job_id, lambda job: [job[n] for n in now] != [during[n] for n in now], BACK_S)
    back_s = time.monotonic() - mended
    assert back_s < BACK_S
    print(f"back {back_s:.1f} s after the link")
    for each in (job_id, other):
        job = cluster.wait(each)
        assert (job["status"], job["attempt"]) == ("completed", 1), job
    assert pids(cluster) == before


def test_a_head_that_loses_its_power_in_the_middle_of_a_job(cluster: Cluster, make: Callable[..., str]) -> None:
    running = make("ltx2", **LONG)
    in_the_middle(cluster, running)
    before = pids(cluster)
    waiting = make("ltx2", **SHORT)
    killed = time.monotonic()
    cluster.head.kill()
    # A new container has an empty disk.
    shutil.rmtree(cluster.head.folder / "ray")
    cluster.boot_head()
    wait_until("the head", lambda: cluster.api.get("/health").json().get("ray") == "ok", 120)
    print(f"head: HTTP back after {time.monotonic() - killed:.1f} s")
    for job_id in (running, waiting):
        # One that was claimed but had not reached its replica is free again after the lease of 180 s.
        job = cluster.wait(job_id, timeout_s=300)
        assert (job["status"], job["attempt"]) == ("completed", 1), job
    assert pids(cluster) == before
    assert set(cluster.ray_nodes()) == {HEAD.address, GPU1, GPU2}


def models(cluster: Cluster) -> list[dict[str, Any]]:
    """What is said of them but what replicas say of themselves, once in a while."""
    told: list[dict[str, Any]] = cluster.api.get("/api/v1/models").json()
    for model in told:
        del model["deployments"]
    return told


def test_a_redeploy_in_the_middle_of_a_job(cluster: Cluster, make: Callable[..., str]) -> None:
    was = models(cluster)
    running = make("ltx2", **LONG)
    in_the_middle(cluster, running)
    before = pids(cluster)
    old = cluster.redeploy()
    try:
        # Fit, so that the platform stops the old one; but nobody's head yet.
        wait_until("the next head", lambda: cluster.api.get("/health").json() == {"api": "standby"}, 60)
        refused = cluster.api.get("/api/v1/models")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert '"head.leads"' not in cluster.head.log()
        assert cluster.head.log().count('"head.waits"') == 1
        assert not {"raylet", "gcs_server"} & set(cluster.head.processes().values())
        stopped = time.monotonic()
        old.terminate()
        assert old.wait(60) == 0
    finally:
        old.kill()
    # The platform's proxy leads to the next one from now on.
    cluster.network.cut_by_reset()
    cluster.network.start_forwarder(cluster.head.machine)
    wait_until("the next head", lambda: cluster.api.get("/health").json().get("ray") == "ok", 120)
    print(f"redeploy: HTTP back {time.monotonic() - stopped:.1f} s after SIGTERM")
    assert models(cluster) == was
    job = cluster.wait(running, timeout_s=300)
    assert (job["status"], job["attempt"]) == ("completed", 1), job
    assert pids(cluster) == before
    assert set(cluster.ray_nodes()) == {HEAD.address, GPU1, GPU2}


def test_a_raylet_that_died_comes_back_in_its_slot(cluster: Cluster, make: Callable[..., str]) -> None:
    was = cluster.ray_nodes()[GPU1]["node_id"]
    cluster.gpu1.kill_process("raylet")

    def anew() -> bool:
        alive = [row for row in cluster.all_ray_nodes() if row["node_ip"] == GPU1 and row["state"] == "ALIVE"]
        # Never two of them for long: the old one's GPU does not exist.
        return len(alive) == 1 and alive[0]["node_id"] != was

    wait_until("a new Ray node in the slot", anew, 60)
    job = cluster.wait(make("ltx2", **SHORT), timeout_s=120)
    assert (job["status"], job["attempt"]) == ("completed", 1), job


def test_a_node_that_is_revoked_ends_and_one_that_is_told_to_leaves_in_order(cluster: Cluster) -> None:
    cluster.command("node", "revoke", "2")
    assert cluster.gpu1.wait(60) == 3
    cluster.gpu2.terminate()
    assert cluster.gpu2.wait(60) == 0
    wait_until("one Ray node", lambda: set(cluster.ray_nodes()) == {HEAD.address}, 60)
    cluster.head.terminate()
    assert cluster.head.wait(60) == 0
    assert '"head.stops"' in cluster.head.log()
