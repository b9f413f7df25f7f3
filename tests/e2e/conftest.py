"""The cluster across machines: made once, since it takes a minute."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster, running
from tests.e2e.container import missing


@pytest.fixture(scope="module")
def cluster(postgres: str) -> Iterator[Cluster]:
    """A head and two GPU nodes, joined, with the real application."""
    if reason := missing():
        pytest.skip(reason)
    # A short path, for Ray's sockets; on disk, since a model's checkpoint is made there.
    with (
        tempfile.TemporaryDirectory(prefix="va-", dir="/var/tmp", ignore_cleanup_errors=True) as folder,
        running(Path(folder), postgres) as made,
    ):
        yield made
