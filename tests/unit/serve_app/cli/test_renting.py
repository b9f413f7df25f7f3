"""What ``video-api head`` rents by: of the environment and two YAML files, or what is wrong with them."""

import sys
from pathlib import Path

import pytest
import yaml
from structlog.testing import capture_logs

from cluster.autoscaler.configuration import ClusterConfig, NodeTypeConfig
from cluster.fleet.caps import Caps
from cluster.head.renting import RentingOptions
from cluster.node.machine import Gpus, host_labels
from cluster.vast.node_type import NODE_TYPES
from deployments.ltx2.memory import paper
from deployments.ltx2.versions import Version
from serve_app.cli import renting as module
from serve_app.cli.renting import IMAGE, IMAGE_PYTHON, RentingSettings, deployments_of, python_fault, renting
from serve_app.cli.terminal import UsageProblem
from serve_app.cli.work import USES
from serve_app.settings import Settings

ROOT = Path(__file__).parents[4]
WANTED = yaml.safe_load((ROOT / "configs/production.yaml").read_text())
CLUSTER = ClusterConfig.read(ROOT / "configs/cluster.yaml")
KEY = "a-key-of-the-test"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key, the nodes' way to the head, and nothing of the developer's own."""
    monkeypatch.chdir(tmp_path)
    for name in (*RentingSettings.model_fields, "railway_tcp_proxy_domain", "railway_tcp_proxy_port"):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("VAST_API_KEY", KEY)
    monkeypatch.setenv("FLEET_HUB", "head.example:4711")


def options(cluster: ClusterConfig | None = CLUSTER) -> RentingOptions | None:
    return renting(Settings(secret_key="s" * 32), WANTED, cluster)  # type: ignore[arg-type]


def changed(**node_config: object) -> ClusterConfig:
    """The YAML with that in the ``node_config`` of one type."""
    content = yaml.safe_load((ROOT / "configs/cluster.yaml").read_text())
    content["available_node_types"]["gpu_4090"]["node_config"] = node_config
    return ClusterConfig(Path("configs/cluster.yaml"), content)


def test_the_key_alone_turns_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = options()
    assert found is not None
    nodes = {"gpu_a100": 4, "gpu_40gb": 4, "gpu_4090": 4}
    assert found.caps == Caps(usd_per_hour=3, usd_per_day=20, usd_per_instance_hour=1.5, nodes=nodes)
    assert (found.hub, found.low_credit_usd, found.wheelhouse) == ("head.example:4711", 5, None)
    assert KEY not in repr(found)
    monkeypatch.setenv("VAST_API_KEY", "")
    assert options() is None


def test_what_is_set_to_nothing_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty wheelhouse would be the working folder."""
    for name in ("VAST_IMAGE", "VAST_URL", "FLEET_WHEELHOUSE", "FLEET_USD_PER_DAY"):
        monkeypatch.setenv(name, "")
    found = RentingSettings.load()
    assert (found.vast_image, found.fleet_wheelhouse, found.fleet_usd_per_day) == (IMAGE, None, 20)


def test_railway_says_how_nodes_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEET_HUB")
    monkeypatch.setenv("RAILWAY_TCP_PROXY_DOMAIN", "proxy.example")
    monkeypatch.setenv("RAILWAY_TCP_PROXY_PORT", "23456")
    assert (found := options()) is not None
    assert found.hub == "proxy.example:23456"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("FLEET_USD_PER_HOUR", "0", "FLEET_USD_PER_HOUR: Input should be greater than 0"),
        ("FLEET_USD_PER_DAY", "-3", "FLEET_USD_PER_DAY: Input should be greater than 0"),
        ("FLEET_USD_PER_NODE_HOUR", "inf", "FLEET_USD_PER_NODE_HOUR: Input should be a finite number"),
        ("FLEET_USD_PER_HOUR", "nan", "FLEET_USD_PER_HOUR: Input should be"),
        ("FLEET_USD_PER_HOUR", "much", "FLEET_USD_PER_HOUR: Input should be a valid number"),
        ("FLEET_LOW_CREDIT_USD", "-1", "FLEET_LOW_CREDIT_USD: Input should be greater than or equal to 0"),
        ("VAST_IMAGE", "pytorch/pytorch:latest", "VAST_IMAGE: Value error, name it with its digest"),
        ("FLEET_WHEELHOUSE", "nowhere", "FLEET_WHEELHOUSE: Path does not point to a directory"),
        ("FLEET_HUB", "head", "FLEET_HUB, at which nodes reach MESH_PORT: a hub's address is HOST:PORT"),
        ("FLEET_HUB", "", "FLEET_HUB, at which nodes reach MESH_PORT: a hub's address is HOST:PORT"),
        ("VAST_API_KEY", "two words", "VAST_API_KEY or VAST_URL: "),
        ("VAST_URL", "hub.example", "VAST_API_KEY or VAST_URL: "),
    ],
)
def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageProblem) as problem:
        options()
    assert str(problem.value).startswith(said)
    assert KEY not in str(problem.value)
    assert "two words" not in str(problem.value)


def test_a_key_needs_types_of_nodes() -> None:
    with pytest.raises(UsageProblem, match=r"name the types of nodes by --cluster configs/cluster.yaml"):
        options(None)


def test_a_provider_of_another_s_and_a_key_are_two() -> None:
    content = {**CLUSTER.content, "provider": {"type": "external"}}
    with pytest.raises(UsageProblem, match="which of them shall it be"):
        options(ClusterConfig(CLUSTER.path, content))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"disk": 30}, "configs/cluster.yaml: node type gpu_4090: disk: unknown; there are disk_gib"),
        ({"spot_usd_per_hour": 900}, "configs/cluster.yaml: node type gpu_4090: spot_usd_per_hour: 0.001 to 128"),
        ({"disk_gib": "large"}, "configs/cluster.yaml: node type gpu_4090: disk_gib: a number"),
    ],
)
def test_what_is_wrong_with_a_type_of_nodes_is_said_of_its_file(config: dict[str, object], said: str) -> None:
    with pytest.raises(UsageProblem) as problem:
        options(changed(**config))
    assert str(problem.value).startswith(said)


def test_a_type_that_nobody_rents_out() -> None:
    types = {**CLUSTER.content["available_node_types"], "gpu_h100": {"max_workers": 1, "node_config": {}}}
    with pytest.raises(UsageProblem, match="node type gpu_h100: there are gpu_a100, gpu_40gb, gpu_4090"):
        options(ClusterConfig(CLUSTER.path, {**CLUSTER.content, "available_node_types": types}))


def test_each_deployment_has_its_type_and_each_type_its_work() -> None:
    found = deployments_of(WANTED, CLUSTER.node_types)
    assert found == {"gpu_a100": ["ltx2"], "gpu_40gb": ["ltx2-40gb"], "gpu_4090": ["wav2lip"]}
    assert set(CLUSTER.node_types) == set(USES)


def test_a_model_whose_type_is_not_there_and_one_that_is_not_served() -> None:
    only = {"gpu_a100": CLUSTER.node_types["gpu_a100"]}
    with pytest.raises(UsageProblem, match=r"wav2lip: no node type has the labels"):
        deployments_of(WANTED, only)
    wanted = yaml.safe_load((ROOT / "configs/production.yaml").read_text())
    deployments = wanted["applications"][0]["deployments"]
    deployments[:] = [each for each in deployments if each["name"] != "wav2lip"]
    assert deployments_of(wanted, only) == {"gpu_a100": ["ltx2"]}, "another class is for nodes that join by hand"
    # Nothing is rented for nobody.
    found = renting(Settings(secret_key="s" * 32), wanted, CLUSTER)  # type: ignore[arg-type]
    assert found is not None
    assert found.caps.nodes == {"gpu_a100": 4, "gpu_40gb": 4}


def test_two_models_share_a_type() -> None:
    anything = NodeTypeConfig(most=2, labels={"gpu-class": "a100", "region": "x"}, options={})
    wanted = {
        "applications": [
            {
                "deployments": [
                    {"name": "api"},
                    *(
                        {"name": name, "ray_actor_options": {"label_selector": {"gpu-class": "a100"}}}
                        for name in ("ltx2", "wav2lip")
                    ),
                ]
            },
            {"name": "another"},
        ]
    }
    assert deployments_of(wanted, {"large": anything}) == {"large": ["ltx2", "wav2lip"]}


def test_a_head_on_another_python_than_its_nodes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    monkeypatch.setattr(module, "IMAGE_PYTHON", here)
    assert python_fault(IMAGE) is None
    monkeypatch.setattr(module, "IMAGE_PYTHON", "3.99")
    fault = f"this head runs on Python {here} and the image that nodes start from has 3.99"
    with capture_logs() as logs:
        options()
    (said,) = logs
    assert (said["log_level"], said["event"]) == ("error", "fleet.other_python")
    assert said["reason"].startswith(fault)
    # Of another image nobody here knows.
    assert python_fault("mine@sha256:0") is None
    assert IMAGE_PYTHON == "3.12"


@pytest.mark.parametrize(("name", "gib", "reports_mb"), [("gpu_a100", 80, 81_000), ("gpu_40gb", 40, 40_200)])
def test_what_is_rented_for_a_class_has_what_the_plans_for_its_cards_need(
    name: str, gib: int, reports_mb: float
) -> None:
    node, said = NODE_TYPES[name], CLUSTER.node_types[name].labels
    assert node.gpu_ram_mb[0] <= reports_mb
    assert Gpus((node.gpu_names[0],), reports_mb / 1024).labels["gpu-memory"] == said["gpu-memory"] == str(gib)
    for version in Version:
        if version is not Version.LTX_VIDEO:
            assert paper(version, 4096, gib).host < node.cpu_ram_mb * 1e6
    labels = host_labels(node.cpu_ram_mb * 1e6 / 1024**3)
    assert int(labels["host-memory"]) >= int(said["host-memory"])
