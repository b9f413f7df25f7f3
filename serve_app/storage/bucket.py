"""The bucket as an operator's command uses it: files of any size, and calls that Ctrl-C ends at once.

What the service needs of a store is in ``base.py``; its objects are of one PUT, which S3 takes up to 5 GB.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from boto3.s3.transfer import TransferConfig

from serve_app.storage.base import ObjectMissing, check_expiry, check_folder
from serve_app.storage.s3 import translated

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

#: Bytes of one part of an upload. Ten are in memory at once; 10,000 parts are S3's limit for one object.
PART_BYTES = 16 * 1024**2


class Bucket:
    """One bucket. All methods but ``link`` raise ``StorageError`` when the store fails."""

    def __init__(self, client: "S3Client", name: str, part_bytes: int = PART_BYTES) -> None:
        self._client = client
        self._name = name
        self._transfer = TransferConfig(multipart_threshold=part_bytes, multipart_chunksize=part_bytes)

    def sizes(self, folder: str) -> Mapping[str, int]:
        """Bytes of every object below ``folder``, which ends with ``/``, by key."""
        with translated(check_folder(folder)):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=folder)
            return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}

    def read(self, key: str) -> bytes | None:
        """A small object; None if there is none."""
        try:
            with translated(key), closing(self._client.get_object(Bucket=self._name, Key=key)["Body"]) as body:
                return body.read()
        except ObjectMissing:
            return None

    def write(self, key: str, data: bytes) -> None:
        """Store a small JSON object."""
        with translated(key):
            self._client.put_object(Bucket=self._name, Key=key, Body=data, ContentType="application/json")

    def upload(self, key: str, path: Path, on_bytes: Callable[[int], object]) -> None:
        """Store a file, in parts if it is large. The object is there whole or not at all; parts that a killed process
        leaves are the bucket's to expire, as R2 does after a week.

        ``on_bytes(done)`` is called from several threads, one at a time.
        """
        done = 0
        lock = threading.Lock()

        def add(amount: int) -> None:
            nonlocal done
            with lock:
                done += amount
                on_bytes(done)

        with translated(key), path.open("rb") as file:
            self._client.upload_fileobj(file, self._name, key, Callback=add, Config=self._transfer)

    def link(self, key: str, expires_s: int) -> str:
        """URL that reads the object for ``expires_s`` seconds; ValueError if that is not 1 s to 7 days. No I/O."""
        return self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self._name, "Key": key}, ExpiresIn=check_expiry(expires_s)
        )
