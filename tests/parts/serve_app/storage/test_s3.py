"""The S3 store against moto's server: real HTTP, real signatures in the URLs."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from moto.core import DEFAULT_ACCOUNT_ID  # type: ignore[attr-defined]
from moto.s3.models import s3_backends

from serve_app.storage.base import MAX_EXPIRY_S, ObjectInfo, ObjectMissing, ObjectTooLarge, StorageError
from serve_app.storage.s3 import S3Storage
from tests.fakes.http_source import HttpSource, reply
from tests.fakes.s3 import make_bucket, s3_server

BUCKET = "media"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def bucket(endpoint: str) -> str:
    return make_bucket(endpoint, BUCKET)


def connect(endpoint: str, bucket: str = BUCKET, public_base: str | None = None) -> S3Storage:
    return S3Storage(endpoint=endpoint, access_key="k", secret_key="s", bucket=bucket, public_base=public_base)


@pytest.fixture
def storage(endpoint: str, bucket: str) -> S3Storage:
    return connect(endpoint, bucket)


def info(data: bytes) -> ObjectInfo:
    return ObjectInfo(len(data), hashlib.md5(data).hexdigest())


async def test_a_file_goes_in_and_comes_out(storage: S3Storage, tmp_path: Path) -> None:
    # Larger than boto's threshold for multipart uploads, whose ETag is no MD5.
    data = b"0123456789abcdef" * 640 * 1024
    (tmp_path / "in").write_bytes(data)
    await storage.put_file("inputs/1/a.png", tmp_path / "in", "image/png")
    assert await storage.stat("inputs/1/a.png") == info(data)
    await storage.get_file("inputs/1/a.png", tmp_path / "out", len(data))
    assert (tmp_path / "out").read_bytes() == data
    with pytest.raises(ObjectTooLarge):
        await storage.get_file("inputs/1/a.png", tmp_path / "large", len(data) - 1)
    assert not (tmp_path / "large").exists()


async def test_a_copy_is_an_object_of_its_own(storage: S3Storage, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"picture")
    await storage.put_file("inputs/c1/a.png", tmp_path / "in", "image/png")
    await storage.copy("inputs/c1/a.png", "inputs/c2/copied/image")
    await storage.delete_prefix("inputs/c1/")
    assert await storage.stat("inputs/c2/copied/image") == info(b"picture")
    async with httpx.AsyncClient() as client:
        answer = await client.get(await storage.presign_get("inputs/c2/copied/image", 60))
    assert (answer.content, answer.headers["content-type"]) == (b"picture", "image/png")
    with pytest.raises(ObjectMissing):
        await storage.copy("inputs/c1/a.png", "inputs/c3/copied/image")


async def test_what_is_not_there(storage: S3Storage, tmp_path: Path) -> None:
    assert await storage.stat("inputs/none") is None
    with pytest.raises(ObjectMissing):
        await storage.get_file("inputs/none", tmp_path / "out", 5)
    assert not (tmp_path / "out").exists()


async def test_presigned_urls_work_for_a_plain_client(storage: S3Storage) -> None:
    put = await storage.presign_put("inputs/2/input.jpg", 3600, "image/jpeg")
    get = await storage.presign_get("inputs/2/input.jpg", 60, filename='my "cat" é.jpg')
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.put(put, content=b"jpeg", headers={"content-type": "image/jpeg"})
        assert answer.status_code == 200
        answer = await client.get(get)
    assert answer.content == b"jpeg"
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["content-disposition"].startswith('attachment; filename="my _cat_ _.jpg"')
    # It may be put once more; a video may not.
    assert answer.headers["cache-control"] == "private, no-cache"
    video = httpx.URL(await storage.presign_get("outputs/2/0/1/output.mp4", 60)).params
    assert video["response-cache-control"] == "private, max-age=60, immutable"
    assert await storage.stat("inputs/2/input.jpg") == info(b"jpeg")


async def test_presigning_needs_no_server() -> None:
    storage = connect("http://127.0.0.1:1")
    query = parse_qs(urlsplit(await storage.presign_put("a/b.mp4", 1234, "video/mp4")).query)
    assert query["X-Amz-Expires"] == ["1234"]
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    # A client that sends another type, or a checksum header, must not be able to fall foul of the signature.
    assert query["X-Amz-SignedHeaders"] == ["content-type;host"]
    url = urlsplit(await storage.presign_get("a/b.mp4", 60))
    assert url.path == f"/{BUCKET}/a/b.mp4"
    assert parse_qs(url.query)["X-Amz-Credential"][0].endswith("/auto/s3/aws4_request")
    with pytest.raises(ValueError, match="presigned URL lives"):
        await storage.presign_get("a/b.mp4", MAX_EXPIRY_S + 1)


async def test_deleting_a_folder_takes_more_than_one_page(storage: S3Storage) -> None:
    # The server runs in this process: a thousand requests would take most of the suite's time.
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for number in range(1001):
        backend.put_object(BUCKET, f"many/1/{number}", b"")
    backend.put_object(BUCKET, "many/10/x", b"x")
    assert await storage.delete_prefix("many/1/") == 1001
    assert await storage.delete_prefix("many/1/") == 0
    assert await storage.stat("many/10/x") is not None
    with pytest.raises(ValueError, match="folder"):
        await storage.delete_prefix("many/1")


async def test_check(storage: S3Storage, endpoint: str) -> None:
    await storage.check()
    with pytest.raises(StorageError) as caught:
        await connect(endpoint, "no-such-bucket").check()
    assert caught.value.transient
    # It is shown to users.
    assert "no-such-bucket" not in caught.value.message


async def test_a_bucket_that_is_gone_is_not_an_object_that_is_missing(endpoint: str, tmp_path: Path) -> None:
    """HEAD answers 404 to both. Taken for a missing video, it would cost all attempts of every job."""
    gone = connect(endpoint, "no-such-bucket")
    (tmp_path / "in").write_bytes(b"x")
    for work in (
        gone.stat("outputs/1/o.mp4"),
        gone.put_file("inputs/1/a.png", tmp_path / "in", "image/png"),
        gone.get_file("inputs/1/a.png", tmp_path / "out", 5),
        gone.page("inputs/", "", 10),
        gone.delete_prefix("inputs/1/"),
    ):
        with pytest.raises(StorageError) as caught:
            await work
        assert not isinstance(caught.value, ObjectMissing)
        assert caught.value.transient


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_was_rotated_is_worth_another_try(status: int) -> None:
    async with HttpSource({f"/{BUCKET}": reply(status), f"/{BUCKET}/a": reply(status)}) as source:
        refused = connect(source.url(""))
        for work in (refused.check(), refused.stat("a")):
            with pytest.raises(StorageError) as caught:
                await work
            assert caught.value.transient


async def test_a_link_for_so_many_bytes_takes_no_more(storage: S3Storage) -> None:
    """The length is a header like any other: signed, S3 wants it to be the one that was signed."""
    url = await storage.presign_put("inputs/1/input.jpg", 60, "image/jpeg", size=4)
    assert parse_qs(urlsplit(url).query)["X-Amz-SignedHeaders"] == ["content-length;content-type;host"]
    async with httpx.AsyncClient() as client:
        put = await client.put(url, content=b"jpeg", headers={"content-type": "image/jpeg"})
    assert put.status_code == 200


async def test_a_listing_goes_on_where_it_stopped(storage: S3Storage) -> None:
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    keys = sorted(f"listed/{n % 3}/{n}" for n in range(25))
    for key in keys:
        backend.put_object(BUCKET, key, b"")
    backend.put_object(BUCKET, "listed2/x", b"")
    pages, after = [], ""
    while page := await storage.page("listed/", after, 10):
        pages.append([found.key for found in page])
        assert all(abs(found.modified - time.time()) < 3600 for found in page)
        after = page[-1].key
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [key for page in pages for key in page] == keys


async def test_an_unreachable_store_is_worth_another_try() -> None:
    with pytest.raises(StorageError) as caught:
        await connect("http://127.0.0.1:1").check()
    assert caught.value.transient
    assert caught.value.code == "storage_unavailable"


def test_public_urls(endpoint: str) -> None:
    assert connect(endpoint).public_url("outputs/1/o.mp4") is None
    public = connect(endpoint, public_base="https://cdn.test/v/")
    assert public.public_url("outputs/1/ö.mp4") == "https://cdn.test/v/outputs/1/%C3%B6.mp4"
