"""What a command finds missing, by lines as a package's METADATA has them."""

from collections.abc import Sequence
from importlib import metadata

import pytest

from serve_app.cli import extras
from serve_app.cli.extras import missing

LINES = (
    "httpx>=0.27",
    'ray[serve]==2.60.0; extra == "head"',
    "boto3>=1.35; extra == 'head'",
    'video-api[head]; extra == "gpu"',
    'torch==2.13.0; extra == "gpu"',
    'opencv-python>=4.10; extra == "gpu"',
    'video-api[gpu]; extra == "local"',
    'psutil>=6; extra == "local"',
    'video-api[local]; extra == "demo"',
    'scikit-image>=0.24; extra == "demo"',
    'pytest; extra == "dev"',
)
HEAD = ("ray", "boto3")
GPU = (*HEAD, "torch", "opencv-python")


@pytest.mark.parametrize(
    ("there", "extra", "lacking"),
    [
        ((), "head", HEAD),
        (HEAD, "head", ()),
        (HEAD, "gpu", ("torch", "opencv-python")),
        (HEAD, "local", ("torch", "opencv-python", "psutil")),
        ((*GPU, "psutil"), "demo", ("scikit-image",)),
        # A node without a desktop.
        ((*HEAD, "torch", "opencv-python-headless"), "gpu", ()),
        ((*GPU, "psutil", "scikit-image"), "demo", ()),
    ],
)
def test_an_extra_wants_its_own_and_what_it_takes_in(
    monkeypatch: pytest.MonkeyPatch, there: Sequence[str], extra: str, lacking: Sequence[str]
) -> None:
    def version(name: str) -> str:
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    assert tuple(missing(extra, LINES)) == lacking


@pytest.mark.parametrize("extra", ["head", "gpu", "local", "demo"])
def test_nothing_is_missing_where_everything_is_installed(extra: str) -> None:
    assert missing(extra, extras._requirements()) == []
