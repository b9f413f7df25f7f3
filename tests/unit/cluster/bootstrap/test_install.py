"""What the bootstrap becomes."""

from pathlib import Path
from typing import Any

import pytest

from cluster.bootstrap.install import become
from cluster.bootstrap.packages import without_links
from tests.unit.cluster.bootstrap.test_image import ORDER


def test_the_node_gets_its_orders_and_no_token_in_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB", "proxy.example:123")
    monkeypatch.setenv("MESH_TOKEN", "mesh1-x")
    monkeypatch.setenv("PATH", "/usr/bin")
    called: list[Any] = []
    become(ORDER, Path("/state/environment/bin"), Path("/state"), lambda *arguments: called.extend(arguments))
    program, command, environment = called
    assert program == "/state/environment/bin/video-api"
    assert command[1:] == ["node", "join", "--hub", "proxy.example:123", "--state", "/state/node", "--gpus", "1"]
    assert environment["MESH_TOKEN"] == "mesh1-x"
    assert environment["LTX2_WEIGHTS"] == ORDER.environment["LTX2_WEIGHTS"]
    assert environment["PATH"] == "/state/environment/bin:/usr/bin"


def test_what_pip_complains_of_is_said_without_addresses() -> None:
    said = "ERROR: Could not fetch https://user:key@index/simple?x=y: 404\n"
    assert without_links(said) == "ERROR: Could not fetch (link) 404"
