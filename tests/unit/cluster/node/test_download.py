"""Weights by parallel ranges, against a store in process that can break off, lie and count."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.node.download import Manifest, WeightFile, WeightsError, fetch
from tests.fakes.weights import contents, linked

CONTENT = bytes(range(256)) * 40
PART = 1000


class Store(httpx.AsyncBaseTransport):
    """An object store with Range. ``fail`` names how the next requests for a part fail."""

    def __init__(self, files: dict[str, bytes], *, ranges: bool = True) -> None:
        self.files = files
        self.ranges = ranges
        self.asked: Counter[int] = Counter()
        self.fail: dict[int, list[int]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        data = self.files.get(request.url.path)
        if data is None:
            return httpx.Response(403)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["range"])
        assert match
        begin, end = int(match[1]), int(match[2])
        self.asked[begin // PART] += 1
        if failures := self.fail.get(begin // PART):
            status = failures.pop()
            if status == 0:
                raise httpx.ReadError("broke off", request=request)
            return httpx.Response(status)
        return httpx.Response(206, content=data[begin : end + 1]) if self.ranges else httpx.Response(200, content=data)


def manifest_of(path: str = "vae/model.safetensors", content: bytes = CONTENT) -> Manifest:
    digest = hashlib.sha256(content).hexdigest()
    return Manifest(files=(WeightFile(path=path, size=len(content), sha256=digest, url="http://store/a?signature=s"),))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(seconds: float) -> None:
        """Back-off without the wait."""

    monkeypatch.setattr("cluster.node.download.asyncio.sleep", at_once)


async def test_parts_come_in_parallel_and_the_file_appears_whole(tmp_path: Path) -> None:
    store, seen = Store({"/a": CONTENT}), []
    await fetch(
        manifest_of(), tmp_path, lambda done, total: seen.append((done, total)), part_bytes=PART, transport=store
    )
    assert (tmp_path / "vae/model.safetensors").read_bytes() == CONTENT
    assert set(store.asked) == set(range(11))
    assert set(store.asked.values()) == {1}
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in (tmp_path / "vae").iterdir()] == ["model.safetensors"]


async def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    store = Store({"/a": CONTENT})
    await fetch(manifest_of(), tmp_path, part_bytes=PART, transport=store)
    store.asked.clear()
    await fetch(manifest_of(), tmp_path, part_bytes=PART, transport=store)
    assert not store.asked


@pytest.mark.usefixtures("no_waiting")
async def test_a_broken_download_is_resumed_part_by_part(tmp_path: Path) -> None:
    store = Store({"/a": CONTENT})
    store.fail = {7: [503] * 6}
    with pytest.raises(WeightsError, match="model"):
        await fetch(manifest_of(), tmp_path, part_bytes=PART, transport=store)
    assert not (tmp_path / "vae/model.safetensors").exists()
    finished = (tmp_path / "vae/model.safetensors.parts").read_text().split("\n")[1:]
    store.asked.clear()
    await fetch(manifest_of(), tmp_path, part_bytes=PART, transport=store)
    assert (tmp_path / "vae/model.safetensors").read_bytes() == CONTENT
    assert not store.asked.keys() & {int(part) for part in finished if part}


@pytest.mark.usefixtures("no_waiting")
async def test_passing_faults_are_tried_again(tmp_path: Path) -> None:
    store = Store({"/a": CONTENT})
    store.fail = {0: [0, 503], 3: [500]}
    await fetch(manifest_of(), tmp_path, part_bytes=PART, transport=store)
    assert (store.asked[0], store.asked[3], store.asked[1]) == (3, 2, 1)


async def test_wrong_content_never_gets_the_files_name(tmp_path: Path) -> None:
    store = Store({"/a": CONTENT[::-1]})
    with pytest.raises(WeightsError, match="sha256"):
        await fetch(manifest_of(), tmp_path, part_bytes=PART, transport=store)
    assert list((tmp_path / "vae").iterdir()) == []
    # It was given a second chance.
    assert set(store.asked.values()) == {2}


async def test_a_refusal_is_final_and_keeps_the_signature_secret(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="403") as caught:
        await fetch(manifest_of(), tmp_path, part_bytes=PART, transport=Store({}))
    assert "signature" not in str(caught.value)


async def test_a_store_without_ranges_is_good_enough(tmp_path: Path) -> None:
    await fetch(manifest_of(), tmp_path, part_bytes=PART, transport=Store({"/a": CONTENT}, ranges=False))
    assert (tmp_path / "vae/model.safetensors").read_bytes() == CONTENT


async def test_a_folder_comes_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "from" / "unet").mkdir(parents=True)
    files = {"model_index.json": b"{}", "unet/empty": b"", "unet/weights": CONTENT}
    for name, content in files.items():
        (tmp_path / "from" / name).write_bytes(content)
    manifest = linked(tmp_path / "from", "http://store")
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    store = Store({f"/{name}": content for name, content in files.items()})
    await fetch(manifest, tmp_path / "to", part_bytes=PART, transport=store)
    assert contents(tmp_path / "to") == files


@given(st.sampled_from(["../x", "/etc/passwd", "a/../../x", "", "."]))
def test_a_manifest_cannot_write_elsewhere(path: str) -> None:
    with pytest.raises(ValidationError):
        manifest_of(path)
