"""S3 and what speaks like it: Cloudflare R2, MinIO.

boto3 is synchronous, so every call that does I/O runs in a thread. Objects are written by a single PUT, not multipart:
then the ETag is the MD5, which is how an upload by a GPU node is checked without reading it back.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from serve_app.disk import require_room
from serve_app.storage.base import (
    Listed,
    ObjectInfo,
    ObjectMissing,
    ObjectTooLarge,
    StorageError,
    check_expiry,
    check_folder,
)
from serve_app.storage.headers import attachment, caching

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import CopySourceTypeDef

T = TypeVar("T")

#: Most keys that one DeleteObjects call takes.
_DELETE_BATCH = 1000
_CHUNK = 1024 * 1024
_MISSING = {"404", "NoSuchKey", "NotFound"}
#: Seconds until a connection stands; R2 answers in well under one.
_CONNECT_TIMEOUT_S = 5
#: Seconds without a byte.
_READ_TIMEOUT_S = 30


def connect(*, endpoint: str, access_key: str, secret_key: str, region: str) -> "S3Client":
    """A client of the store at ``endpoint``, the S3 API without a bucket. No I/O."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=region,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=32,
            # Newer boto3 adds CRC trailers to every upload; not every S3-compatible store takes them.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn boto's errors into ours; ``what`` was asked for."""
    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error.response.get("Error", {}).get("Code", "")
        if code in _MISSING:
            raise ObjectMissing(what) from error
        # A rotated key, a bucket that is gone: our operator's to mend, and then another try succeeds.
        transient = status >= 500 or status in (0, 401, 403, 404, 408, 429)
        raise StorageError(f"The object store answered {status} {code} for {what}.", transient=transient) from error
    except BotoCoreError as error:
        raise StorageError(f"The object store can't be reached: {type(error).__name__}.", transient=True) from error


class S3Storage:
    """One bucket."""

    def __init__(
        self,
        *,
        endpoint: str,
        access_key: str,
        secret_key: str,
        bucket: str,
        region: str = "auto",
        public_base: str | None = None,
    ) -> None:
        """``endpoint`` is the S3 API without the bucket; ``public_base`` is where the bucket is public, if it is."""
        self._bucket = bucket
        self._public_base = public_base.rstrip("/") if public_base else None
        self._client = connect(endpoint=endpoint, access_key=access_key, secret_key=secret_key, region=region)

    async def presign_get(self, key: str, expires_s: int, *, filename: str | None = None) -> str:
        """See :class:`~serve_app.storage.base.Storage`."""
        # At GET and not at PUT, where whoever writes would have to send it, too.
        params = {"Bucket": self._bucket, "Key": key, "ResponseCacheControl": caching(key, expires_s)}
        if filename is not None:
            params["ResponseContentDisposition"] = attachment(filename)
        return self._presign("get_object", params, expires_s)

    async def presign_put(self, key: str, expires_s: int, content_type: str, size: int | None = None) -> str:
        """See :class:`~serve_app.storage.base.Storage`.

        A range of sizes could only be signed for the POST of a form, which R2 does not take.
        """
        params: dict[str, Any] = {"Bucket": self._bucket, "Key": key, "ContentType": content_type}
        if size is not None:
            params["ContentLength"] = size
        return self._presign("put_object", params, expires_s)

    async def stat(self, key: str) -> ObjectInfo | None:
        """See :class:`~serve_app.storage.base.Storage`."""

        def head() -> ObjectInfo:
            answer = self._client.head_object(Bucket=self._bucket, Key=key)
            etag = answer["ETag"].strip('"')
            # ``<hash>-<parts>`` is the ETag of a multipart upload, which is no MD5 of the object; nor is that of one
            # which the store encrypts with a key of its own service.
            known = "-" not in etag and answer.get("ServerSideEncryption") in (None, "AES256")
            return ObjectInfo(size=answer["ContentLength"], md5=etag if known else None)

        try:
            return await _call(head, key)
        except ObjectMissing:
            # The answer to HEAD has no body that says what is missing: the object, or all of the bucket.
            await self.check()
            return None

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        """See :class:`~serve_app.storage.base.Storage`."""

        def put() -> None:
            with path.open("rb") as body:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=body, ContentType=content_type)

        await _call(put, key)

    async def copy(self, source: str, target: str) -> None:
        """See :class:`~serve_app.storage.base.Storage`. In one piece, which S3 does up to 5 GB."""

        def put() -> None:
            origin: CopySourceTypeDef = {"Bucket": self._bucket, "Key": source}
            self._client.copy_object(Bucket=self._bucket, Key=target, CopySource=origin)

        await _call(put, source)

    async def get_file(self, key: str, path: Path, max_bytes: int) -> None:
        """See :class:`~serve_app.storage.base.Storage`."""

        def get() -> None:
            answer = self._client.get_object(Bucket=self._bucket, Key=key)
            # Not ``with body``: that hands out urllib3's response, without its checks for a body cut short.
            with closing(answer["Body"]) as body:
                if answer["ContentLength"] > max_bytes:
                    raise ObjectTooLarge(key, max_bytes)
                require_room(path.parent, answer["ContentLength"])
                try:
                    with path.open("wb") as file:
                        for chunk in body.iter_chunks(_CHUNK):
                            file.write(chunk)
                except BaseException:
                    path.unlink(missing_ok=True)
                    raise

        await _call(get, key)

    async def delete_prefix(self, prefix: str) -> int:
        """See :class:`~serve_app.storage.base.Storage`."""
        folder = check_folder(prefix)

        def delete() -> int:
            deleted = 0
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=folder, PaginationConfig={"PageSize": _DELETE_BATCH}
            )
            for page in pages:
                keys = [entry["Key"] for entry in page.get("Contents", [])]
                if not keys:
                    continue
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
                )
                if errors := answer.get("Errors"):
                    raise StorageError(f"Could not delete {len(errors)} objects below {folder}.", transient=True)
                deleted += len(keys)
            return deleted

        return await _call(delete, folder)

    async def page(self, prefix: str, after: str, limit: int) -> Sequence[Listed]:
        """See :class:`~serve_app.storage.base.Storage`. ``limit`` is at most 1000."""
        folder = check_folder(prefix)

        def read() -> Sequence[Listed]:
            answer = self._client.list_objects_v2(
                # Everything comes after the folder's own name.
                Bucket=self._bucket,
                Prefix=folder,
                StartAfter=after or folder,
                MaxKeys=limit,
            )
            return [Listed(entry["Key"], entry["LastModified"].timestamp()) for entry in answer.get("Contents", [])]

        return await _call(read, folder)

    async def check(self) -> None:
        """See :class:`~serve_app.storage.base.Storage`. Needs no more than permission to list the bucket."""
        try:
            await _call(lambda: self._client.head_bucket(Bucket=self._bucket), "the bucket")
        except ObjectMissing as error:
            raise StorageError("The object store has no such bucket.", transient=True) from error

    def public_url(self, key: str) -> str | None:
        """See :class:`~serve_app.storage.base.Storage`."""
        return None if self._public_base is None else f"{self._public_base}/{quote(key)}"

    def _presign(self, operation: Literal["get_object", "put_object"], params: dict[str, Any], expires_s: int) -> str:
        return str(self._client.generate_presigned_url(operation, Params=params, ExpiresIn=check_expiry(expires_s)))


async def _call(call: Callable[[], T], what: str) -> T:
    """Run ``call`` in a thread and turn boto's errors into ours."""
    with translated(what):
        return await asyncio.to_thread(call)
