"""The head's image has no GPU library, and a client has nothing of a head: what they import is there without."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What a head image does not have.
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "cv2", "librosa", "av")
#: Imported in replicas only, so free to need them.
REPLICA_ONLY = ("deployments.accelerator", "deployments.media.mp4")
#: What a client does not have.
SERVICE = (
    *(*HEAVY, "PIL", "aiodns", "alembic", "boto3", "cryptography", "fastapi", "huggingface_hub", "imageio_ffmpeg"),
    *("numpy", "prometheus_client", "psycopg", "pydantic", "pydantic_settings", "ray", "sqlalchemy", "starlette"),
    *("standardwebhooks", "structlog", "uuid_utils", "uvicorn", "uvloop", "yaml"),
)


def modules(package: str) -> list[Path]:
    return [path for path in sorted((ROOT / package).rglob("*.py")) if "migrations" not in path.parts]


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


def test_a_node_starts_without_the_head_s_database() -> None:
    """It has none, and the library would take half a second of its start and 25 MB of its memory."""
    program = "import sys; sys.modules['sqlalchemy'] = None; import cluster.node.process"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("lacks", "statement"),
    [
        # Only httpx, and what that needs.
        ((*SERVICE, "typer", "rich", "dotenv", "serve_app.cli", "cluster", "deployments"), "import serve_app.client"),
        (SERVICE, "from serve_app.cli import app; app(['--help'])"),
        (SERVICE, "from serve_app.cli import app; app(['submit', '--help'])"),
        (SERVICE, "from serve_app.cli import app; app(['head', '--help'])"),
    ],
)
def test_a_client_imports_nothing_of_a_service(lacks: tuple[str, ...], statement: str) -> None:
    program = f"import sys; sys.modules.update(dict.fromkeys({lacks!r})); {statement}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
