"""The map of DESIGN: which package may import what, and that the head needs no GPU library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What a head image does not have.
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "cv2", "librosa", "av")
#: Imported in replicas only, so free to need them.
REPLICA_ONLY = ("deployments.accelerator", "deployments.media.mp4")

ALLOWED = {
    "serve_app": {
        *(
            "deployments.contract",
            "deployments.engine",
            "deployments.faults",
            "deployments.registry",
            "deployments.logs",
        ),
        # Strangers' media are read by the same code in intake and on a GPU.
        *("deployments.media", "deployments.media.formats", "deployments.sandbox.process"),
        *("deployments.sandbox.report", "deployments.sandbox.secrecy"),
    },
    "deployments": set(),
    "cluster": {"serve_app.settings"},
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


def test_the_head_imports_without_any_gpu_library() -> None:
    specs = [path.parent.name for path in (ROOT / "deployments").glob("*/spec.py")]
    shared = [path for folder in (".", "media", "sandbox") for path in (ROOT / "deployments" / folder).glob("*.py")]
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in [*modules("serve_app"), *modules("cluster"), *shared]
        if path.stem != "__main__"
    ]
    names = [name for name in names if name not in REPLICA_ONLY]
    names += [f"deployments.{spec}.spec" for spec in specs]
    program = f"""
import importlib, sys
for name in {HEAVY!r}:
    sys.modules[name] = None  # makes `import name` raise
for name in {names!r}:
    importlib.import_module(name)
print("imported", len({names!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("imported")
    assert len(specs) >= 1
