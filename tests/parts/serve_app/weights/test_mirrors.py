"""Checkpoints from a hub, or from a disk, into a bucket: whole, once, and never in part."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from serve_app.storage import keys
from serve_app.storage.base import StorageError
from serve_app.storage.bucket import Bucket
from serve_app.weights.hub import HubError, HubSource
from serve_app.weights.mirrors import Copied, Mirrors, NoSuchMirror, OnStep, WrongContent, chosen
from serve_app.weights.source import LocalSource, MirrorError, Source
from tests.fakes.hub import Cut, Hub, Refusal, Repository

NAME = "someone/model"
LARGE = frozenset({"unet/weights.safetensors", "vae/weights.safetensors"})
FILES = {
    "model_index.json": b'{"_class_name": "Pipeline"}',
    "unet/config.json": b"{}",
    "unet/weights.safetensors": os.urandom(40_000),
    "vae/empty": b"",
    "vae/weights.safetensors": os.urandom(20_000),
}


@pytest.fixture
def repository(hub: Hub) -> Repository:
    hub.repositories[NAME] = Repository(dict(FILES), LARGE)
    return hub.repositories[NAME]


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def copy(mirrors: Mirrors, source: Source, name: str = "model", on_step: OnStep = silent) -> Copied:
    return mirrors.copy(source, source.files(), name, on_step)


def from_hub(hub: Hub) -> HubSource:
    return HubSource.find(NAME, None, endpoint=hub.url, token=None)


def read(mirrors: Mirrors, name: str = "model") -> dict[str, bytes]:
    """What somebody with links gets."""
    return {file.path: httpx.get(url, trust_env=False).content for file, url in mirrors.links(name, 60).items()}


def test_a_repository_is_copied_whole(mirrors: Mirrors, hub: Hub, repository: Repository) -> None:
    copied = copy(mirrors, from_hub(hub))
    assert read(mirrors) == FILES
    assert (copied.manifest.source, copied.manifest.revision) == (NAME, repository.commit)
    assert {file.path: file.sha256 for file in copied.manifest.files} == {
        path: hashlib.sha256(content).hexdigest() for path, content in FILES.items()
    }
    assert (copied.new_files, copied.new_bytes) == (len(FILES), sum(map(len, FILES.values())))


@pytest.mark.usefixtures("repository")
def test_the_manifest_comes_last(mirrors: Mirrors, hub: Hub, written: list[str]) -> None:
    copy(mirrors, from_hub(hub))
    assert len(written) == len(FILES) + 1
    assert written.index(keys.weights_manifest("model")) == len(FILES)


@pytest.mark.usefixtures("repository")
def test_a_second_time_nothing_is_copied(mirrors: Mirrors, hub: Hub, written: list[str]) -> None:
    first = copy(mirrors, from_hub(hub))
    hub.fetched.clear()
    written.clear()
    second = copy(mirrors, from_hub(hub))
    assert (hub.fetched, written) == ([], [])
    assert (second.manifest, second.new_files, second.new_bytes) == (first.manifest, 0, 0)


def test_what_was_cut_off_is_no_mirror_and_goes_on(
    mirrors: Mirrors, hub: Hub, repository: Repository, written: list[str]
) -> None:
    repository.faults["vae/weights.safetensors"] = [Cut(5_000), Refusal(500)]
    with pytest.raises(HubError, match="answered 500"):
        copy(mirrors, from_hub(hub))
    assert [each.manifest for each in mirrors.all()] == [None]
    with pytest.raises(NoSuchMirror):
        mirrors.links("model", 60)
    hub.fetched.clear()
    written.clear()
    copy(mirrors, from_hub(hub))
    assert ("unet/weights.safetensors", 0) not in hub.fetched
    assert [key.rpartition("/")[2] for key in written] == ["weights.safetensors", "manifest.json"]
    assert read(mirrors) == FILES


def test_a_file_that_breaks_off_goes_on_where_it_did(mirrors: Mirrors, hub: Hub, repository: Repository) -> None:
    # The library keeps what has come by ten MiB.
    kept = 10 * 1024**2
    repository.files["unet/weights.safetensors"] = os.urandom(kept + 5_000)
    repository.faults["unet/weights.safetensors"] = [Cut(kept + 1_000)]
    copy(mirrors, from_hub(hub))
    assert [begin for path, begin in hub.fetched if path == "unet/weights.safetensors"] == [0, kept]
    assert read(mirrors) == repository.files


def test_another_content_than_the_hub_s_is_not_stored(
    mirrors: Mirrors, hub: Hub, repository: Repository, written: list[str]
) -> None:
    path = "unet/weights.safetensors"
    repository.damaged[path] = FILES[path][::-1]
    with pytest.raises(WrongContent, match=f"{path} is not what {NAME} says it is: its sha256 is"):
        copy(mirrors, from_hub(hub))
    assert not [key for key in written if key.endswith((path, "manifest.json"))]


@pytest.mark.usefixtures("repository")
def test_the_store_of_large_files_never_sees_the_token(mirrors: Mirrors, hub: Hub) -> None:
    hub.tokens.add("hf_token")
    copy(mirrors, HubSource.find(NAME, "main", endpoint=hub.url, token="hf_token"))
    assert {path for path, _ in hub.fetched} >= LARGE
    assert hub.leaked == []


@pytest.mark.usefixtures("repository")
def test_one_file_at_a_time_is_on_the_disk(mirrors: Mirrors, hub: Hub, temporary: Path) -> None:
    seen = set()

    def look(what: str, done: int, total: int) -> None:
        kept = [path for path in temporary.rglob("*") if path.is_file() and ".cache" not in path.parts]
        seen.add(tuple(path.name for path in kept))

    copy(mirrors, from_hub(hub), on_step=look)
    assert {len(names) for names in seen} == {1}
    assert list(temporary.iterdir()) == []


def test_what_fails_leaves_no_file_on_the_disk(
    mirrors: Mirrors, hub: Hub, repository: Repository, temporary: Path
) -> None:
    repository.faults["unet/weights.safetensors"] = [Cut(5_000), Refusal(500)]
    with pytest.raises(HubError):
        copy(mirrors, from_hub(hub))
    assert list(temporary.iterdir()) == []


def test_another_revision_leaves_the_links_of_the_old_one_good(
    mirrors: Mirrors, hub: Hub, repository: Repository
) -> None:
    copy(mirrors, from_hub(hub))
    old = mirrors.links("model", 60)
    repository.files |= {"unet/config.json": b"[]", "unet/weights.safetensors": os.urandom(40_000)}
    repository.commit = "d1" * 20
    copied = copy(mirrors, from_hub(hub))
    assert (copied.manifest.revision, copied.new_files) == (repository.commit, 2)
    assert read(mirrors) == repository.files
    assert {file.path: httpx.get(url, trust_env=False).content for file, url in old.items()} == FILES


def test_a_folder_is_copied_and_looked_at_anew(mirrors: Mirrors, tmp_path: Path, written: list[str]) -> None:
    folder = tmp_path / "checkpoint"
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    copied = copy(mirrors, LocalSource(folder))
    assert (copied.manifest.source, copied.manifest.revision) == ("checkpoint", None)
    assert read(mirrors) == FILES
    written.clear()
    assert copy(mirrors, LocalSource(folder)).new_files == 0
    assert written == []
    (folder / "unet/config.json").write_bytes(b"[]")
    assert copy(mirrors, LocalSource(folder)).new_files == 1
    assert read(mirrors) == {**FILES, "unet/config.json": b"[]"}


def test_a_file_is_a_checkpoint_of_one(mirrors: Mirrors, tmp_path: Path) -> None:
    (tmp_path / "wav2lip_gan.pth").write_bytes(b"weights")
    (tmp_path / "beside").write_bytes(b"not asked for")
    copied = copy(mirrors, LocalSource(tmp_path / "wav2lip_gan.pth"), "wav2lip")
    assert copied.manifest.source == "wav2lip_gan.pth"
    assert read(mirrors, "wav2lip") == {"wav2lip_gan.pth": b"weights"}


def test_a_file_that_changes_while_it_is_copied_is_refused(mirrors: Mirrors, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"longer than listed")
    source = LocalSource(tmp_path / "weights")
    files = [replace(file, size=3) for file in source.files()]
    with pytest.raises(WrongContent, match="does not have the 3 bytes"):
        mirrors.copy(source, files, "model", silent)


def test_mirrors_of_a_bucket(mirrors: Mirrors, bucket: Bucket, hub: Hub, repository: Repository) -> None:
    assert mirrors.all() == []
    copied = copy(mirrors, from_hub(hub))
    # Left by a copy that was cut off; and what is no mirror at all.
    bucket.write("weights/other/files/00/x", b"12345")
    bucket.write("weights/stray", b"1")
    found = {each.name: each for each in mirrors.all()}
    assert set(found) == {"model", "other"}
    assert found["model"].manifest == copied.manifest
    assert found["model"].stored_bytes > copied.manifest.total_bytes
    assert (found["other"].manifest, found["other"].stored_bytes) == (None, 5)


@pytest.mark.usefixtures("repository")
def test_a_manifest_that_is_none_is_replaced(mirrors: Mirrors, bucket: Bucket, hub: Hub) -> None:
    bucket.write(keys.weights_manifest("model"), b"<html>")
    with pytest.raises(NoSuchMirror):
        mirrors.links("model", 60)
    copy(mirrors, from_hub(hub))
    assert read(mirrors) == FILES


@pytest.mark.parametrize("name", ["none", "../model", ""])
def test_there_are_no_links_to_what_is_not_mirrored(mirrors: Mirrors, name: str) -> None:
    with pytest.raises(NoSuchMirror, match="weights list"):
        mirrors.links(name, 60)


def test_a_large_file_goes_up_in_parts_and_comes_down_whole(
    mirrors: Mirrors, tmp_path: Path, written: list[str]
) -> None:
    content = os.urandom(6 * 1024**2)
    (tmp_path / "large").write_bytes(content)
    told: list[tuple[str, int, int]] = []
    copy(mirrors, LocalSource(tmp_path / "large"), on_step=lambda *step: told.append(step))
    assert [key.rpartition("/")[2] for key in written] == ["large", "large", "manifest.json"]
    assert read(mirrors) == {"large": content}
    assert {what for what, _, _ in told} == {"checking large (1 of 1)", "storing large (1 of 1)"}
    assert told[-1] == ("storing large (1 of 1)", len(content), len(content))


def test_a_bucket_that_is_not_there_is_said(endpoint: str, bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"x")
    gone = Mirrors(Bucket(bucket._client, "no-such-bucket"))
    for work in (
        lambda: copy(gone, LocalSource(tmp_path / "weights")),
        lambda: gone.all(),
        lambda: gone.publish(b"{}", 60),
    ):
        with pytest.raises(StorageError, match="404 NoSuchBucket"):
            work()


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ([], [], list(FILES)),
        (["unet/*"], [], ["unet/config.json", "unet/weights.safetensors"]),
        (["*.json"], ["unet/*"], ["model_index.json"]),
        ([], ["*weights*", "vae/*"], ["model_index.json", "unet/config.json"]),
    ],
)
@pytest.mark.usefixtures("repository")
def test_patterns_choose(hub: Hub, include: list[str], exclude: list[str], left: list[str]) -> None:
    assert sorted(file.path for file in chosen(from_hub(hub).files(), include, exclude)) == sorted(left)


@pytest.mark.usefixtures("repository")
def test_patterns_that_leave_nothing_are_a_mistake(hub: Hub) -> None:
    with pytest.raises(MirrorError, match="of 5 files none is left"):
        chosen(from_hub(hub).files(), ["*.bin"], [])
