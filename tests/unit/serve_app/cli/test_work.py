"""What is expected of a node's work, and what the YAML files make of it."""

import tomllib
from pathlib import Path

import yaml

from serve_app.cli.renting import IMAGE
from serve_app.cli.work import USES

ROOT = Path(__file__).parents[4]
DEPLOYMENTS = {"gpu_a100": "ltx2", "gpu_40gb": "ltx2-40gb", "gpu_4090": "wav2lip"}


def test_a_node_idles_for_as_long_as_the_yaml_files_say() -> None:
    (application,) = yaml.safe_load((ROOT / "configs/production.yaml").read_text())["applications"]
    types = yaml.safe_load((ROOT / "configs/cluster.yaml").read_text())["available_node_types"]
    idle_s = application["args"]["max_idle"]
    found = {name: idle_s[served] + types[name]["idle_timeout_s"] for name, served in DEPLOYMENTS.items()}
    assert found == {name: use.idle_s for name, use in USES.items()}


def test_the_stock_image_has_the_torch_that_is_required() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = (each for each in project["optional-dependencies"]["gpu"] if each.startswith("torch=="))
    assert IMAGE.startswith(f"pytorch/pytorch:{torch.removeprefix('torch==')}-")
