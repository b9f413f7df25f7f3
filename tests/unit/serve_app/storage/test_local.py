import errno
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.storage.base import InvalidKey, ObjectInfo, ObjectMissing, ObjectTooLarge, StorageError
from serve_app.storage.local import LocalStorage, content_type_of

SECRET = b"0123456789abcdef"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def storage(root: Path) -> LocalStorage:
    return LocalStorage(root, "http://api.test", SECRET)


def info(data: bytes) -> ObjectInfo:
    return ObjectInfo(len(data), hashlib.md5(data).hexdigest())


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def leftovers(root: Path) -> list[Path]:
    return list((root / ".tmp").iterdir())


async def test_a_file_goes_in_and_comes_out(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"hello")
    await storage.put_file("inputs/1/a.png", tmp_path / "in", "image/png")
    assert await storage.stat("inputs/1/a.png") == info(b"hello")
    await storage.get_file("inputs/1/a.png", tmp_path / "out", 5)
    assert (tmp_path / "out").read_bytes() == b"hello"
    found = await storage.locate("inputs/1/a.png")
    assert found is not None
    assert (found[0].read_bytes(), found[1].st_size) == (b"hello", 5)


async def test_what_is_not_there(storage: LocalStorage, tmp_path: Path) -> None:
    assert await storage.stat("inputs/1/a.png") is None
    assert await storage.locate("inputs/1/a.png") is None
    with pytest.raises(ObjectMissing):
        await storage.get_file("inputs/1/a.png", tmp_path / "out", 5)
    await storage.write("inputs/1/a.png", chunks(b"x"), 5)
    assert await storage.stat("inputs/1") is None
    assert await storage.stat("inputs/1/a.png/b") is None
    assert await storage.locate("inputs/1") is None
    assert await storage.locate("inputs/1/a.png/b") is None


async def test_a_copy_is_an_object_of_its_own(storage: LocalStorage, root: Path) -> None:
    await storage.write("inputs/1/a.png", chunks(b"hello"), 5)
    found = await storage.locate("inputs/1/a.png")
    assert found is not None
    os.utime(found[0], (0, 0))
    await storage.copy("inputs/1/a.png", "inputs/2/copied/image")
    # As new as a copy in a bucket is: whoever sweeps old objects without a job leaves it alone.
    (copied,) = await storage.page("inputs/2/", "", 10)
    assert copied.modified > 0
    await storage.delete_prefix("inputs/1/")
    assert await storage.stat("inputs/2/copied/image") == info(b"hello")
    with pytest.raises(ObjectMissing):
        await storage.copy("inputs/1/a.png", "inputs/3/copied/image")
    assert await storage.stat("inputs/3/copied/image") is None
    assert leftovers(root) == []


async def test_too_large_to_read(storage: LocalStorage, tmp_path: Path) -> None:
    await storage.write("a", chunks(b"hello"), 5)
    with pytest.raises(ObjectTooLarge):
        await storage.get_file("a", tmp_path / "out", 4)
    assert not (tmp_path / "out").exists()


async def test_a_body_is_stored_whole_or_not_at_all(storage: LocalStorage, root: Path) -> None:
    assert await storage.write("a", chunks(b"he", b"", b"llo"), 5) == info(b"hello")
    with pytest.raises(ObjectTooLarge):
        await storage.write("a", chunks(b"123", b"456"), 5)

    async def breaks() -> AsyncIterator[bytes]:
        yield b"123"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await storage.write("a", breaks(), 5)
    assert await storage.stat("a") == info(b"hello")
    assert leftovers(root) == []


async def test_md5_follows_the_content(storage: LocalStorage) -> None:
    for data in (b"one", b"two"):
        await storage.write("a", chunks(data), 5)
        assert await storage.stat("a") == info(data)
        assert await storage.stat("a") == info(data)


async def test_deleting_a_folder_leaves_its_neighbours(storage: LocalStorage, root: Path) -> None:
    for key in ("jobs/1/a", "jobs/1/b/c", "jobs/10/a"):
        await storage.write(key, chunks(b"x"), 5)
    assert await storage.delete_prefix("jobs/1/") == 2
    assert not (root / "jobs/1").exists()
    assert await storage.stat("jobs/10/a") is not None
    assert await storage.delete_prefix("jobs/1/") == 0


@pytest.mark.parametrize("prefix", ["", "/", "jobs/1"])
async def test_only_folders_are_deleted(storage: LocalStorage, prefix: str) -> None:
    with pytest.raises(ValueError, match="folder"):
        await storage.delete_prefix(prefix)


@pytest.mark.parametrize(
    "key",
    [
        *("", "/etc/passwd", "../x", "a/../x", "a/./x", "a//x", "a/", ".tmp/x", "a/.hidden"),
        *("a\\b", "a\n", "a\x00b", "ä", "C:/x", "a" * 300, "/".join("abcdefghi")),
    ],
)
async def test_keys_that_are_none(storage: LocalStorage, tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidKey):
        await storage.presign_put(key, 60, "image/png")
    with pytest.raises(InvalidKey):
        await storage.stat(key)
    with pytest.raises(InvalidKey):
        await storage.write(key, chunks(b"x"), 5)
    with pytest.raises(InvalidKey):
        await storage.get_file(key, tmp_path / "out", 5)
    with pytest.raises(InvalidKey):
        storage.verify("GET", key, {})


@given(key=st.text(alphabet="./\\a%~ \x00", max_size=12))
def test_no_key_leads_outside(tmp_path_factory: pytest.TempPathFactory, key: str) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzzed"
    storage = LocalStorage(root, "http://api.test", SECRET)
    try:
        path = storage._path(key)
    except InvalidKey:
        return
    assert path.is_relative_to(root.resolve())
    assert path != root.resolve()


async def test_symlinks_are_not_followed(storage: LocalStorage, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "link").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    for key in ("link/secret", "file"):
        with pytest.raises(InvalidKey):
            await storage.locate(key)
        with pytest.raises(InvalidKey):
            await storage.write(key, chunks(b"x"), 5)
    (root / "jobs").mkdir()
    (root / "jobs/link").symlink_to(outside)
    await storage.delete_prefix("jobs/")
    assert (outside / "secret").read_text() == "secret"


async def test_presigned_urls_carry_what_they_grant(storage: LocalStorage) -> None:
    parts = urlsplit(await storage.presign_put("inputs/1/a.png", 60, "image/png"))
    assert (parts.netloc, parts.path) == ("api.test", "/files/inputs/1/a.png")
    query = dict(parse_qsl(parts.query))
    grant = storage.verify("PUT", "inputs/1/a.png", query)
    assert (grant.method, grant.content_type) == ("PUT", "image/png")
    parts = urlsplit(await storage.presign_get("inputs/1/a.png", 60, filename="my cat.png"))
    assert storage.verify("GET", "inputs/1/a.png", dict(parse_qsl(parts.query))).filename == "my cat.png"
    assert storage.public_url("inputs/1/a.png") is None


async def test_check_notices_a_lost_directory(storage: LocalStorage, root: Path) -> None:
    await storage.check()
    assert leftovers(root) == []
    (root / ".tmp").rmdir()
    with pytest.raises(StorageError) as caught:
        await storage.check()
    assert caught.value.transient


def test_leftovers_of_killed_processes_go(root: Path) -> None:
    LocalStorage(root, "http://api.test", SECRET)
    for name, modified in (("old", 0), ("new", None)):
        (root / ".tmp" / name).touch()
        if modified is not None:
            os.utime(root / ".tmp" / name, (modified, modified))
    LocalStorage(root, "http://api.test", SECRET)
    assert [path.name for path in leftovers(root)] == ["new"]


def test_nothing_is_served_as_a_page() -> None:
    assert content_type_of("outputs/1/1/output.mp4") == "video/mp4"
    assert content_type_of("inputs/1/evil.html") == "application/octet-stream"


# -------------------------------------------------------------------- a disk that is full


async def test_a_full_disk_is_down_before_its_last_byte(root: Path) -> None:
    """An empty file can be made on a full disk: what the check did before."""
    free = os.statvfs(root.parent)
    full = LocalStorage(root, "http://api.test", SECRET, reserve=free.f_bavail * free.f_frsize + 2**30)
    with pytest.raises(StorageError, match="disk of the media folder is full") as caught:
        await full.check()
    assert caught.value.transient
    assert leftovers(root) == []


async def test_a_check_really_writes(storage: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota does not show in the free bytes of the disk."""
    written: list[int] = []

    def no_room(path: Path, data: bytes) -> int:
        written.append(len(data))
        path.touch()
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    await storage.check()
    assert leftovers(root) == []
    monkeypatch.setattr(Path, "write_bytes", no_room)
    with pytest.raises(StorageError, match="Disk quota exceeded"):
        await storage.check()
    assert written == [2**20]
    assert leftovers(root) == []


# -------------------------------------------------------------------- listing and deleting


async def test_a_listing_goes_on_where_it_stopped(storage: LocalStorage) -> None:
    names = ["b/1/x", "a/2/y", "a/10/z", "a/2/deep/er", "a-b/x", "c"]
    for name in names:
        await storage.write(f"inputs/{name}", chunks(b"x"), 5)
    await storage.write("inputs2/x", chunks(b"x"), 5)
    pages, after = [], ""
    while page := await storage.page("inputs/", after, 2):
        pages.append([found.key for found in page])
        assert all(abs(found.modified - time.time()) < 3600 for found in page)
        after = page[-1].key
    assert [len(page) for page in pages] == [2, 2, 2]
    assert sorted(key for page in pages for key in page) == sorted(f"inputs/{name}" for name in names)
    assert await storage.page("nothing/", "", 5) == []


async def test_no_empty_folders_stay_behind(storage: LocalStorage, root: Path) -> None:
    """A job's folder holds that of its nonce: a folder each for a million jobs would be a million inodes."""
    for name in ("inputs/1/n/a", "inputs/2/n/a", "inputs/2/m/a"):
        await storage.write(name, chunks(b"x"), 5)
    assert await storage.delete_prefix("inputs/1/n/") == 1
    assert await storage.delete_prefix("inputs/2/n/") == 1
    assert sorted(str(path.relative_to(root)) for path in (root / "inputs").rglob("*")) == [
        "inputs/2",
        "inputs/2/m",
        "inputs/2/m/a",
    ]
    await storage.write("inputs/1/n/a", chunks(b"x"), 5)
    assert await storage.stat("inputs/1/n/a") is not None
