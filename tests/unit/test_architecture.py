"""The map of the packages: which may import what."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "serve_app": {
        *(
            "deployments.contract",
            "deployments.engine",
            "deployments.failure_code",
            "deployments.faults",
            "deployments.stage",
            "deployments.registry",
            "deployments.logs",
        ),
        # Strangers' media are read by the same code in intake and on a GPU.
        *("deployments.media", "deployments.media.formats", "deployments.sandbox.process"),
        *("deployments.sandbox.report", "deployments.sandbox.secrecy"),
    },
    "deployments": set(),
    "cluster": set(),
}
#: ``app.py`` wires: it alone knows the replica.
WIRING = {"serve_app/app.py": {"deployments", "deployments.replica"}}
#: The command line starts clusters: it may reach for any part of one.
STARTS_CLUSTERS = "serve_app/cli/cluster.py"


def modules(package: str) -> list[Path]:
    return [path for path in sorted((ROOT / package).rglob("*.py")) if "migrations" not in path.parts]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_the_map_allows(package: str) -> None:
    for path in modules(package):
        name = str(path.relative_to(ROOT))
        free = {package, "cluster"} if name == STARTS_CLUSTERS else {package}
        foreign = {i for i in imports(path) if i.split(".")[0] in ALLOWED.keys() - free}
        assert foreign <= ALLOWED[package] | WIRING.get(name, set()), name
