"""An S3 server: moto's, over real HTTP, with real signatures in its links."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

_numbers = itertools.count()


@contextmanager
def s3_server() -> Iterator[str]:
    """Its endpoint. All of a process have the same buckets."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def make_bucket(endpoint: str, name: str = "") -> str:
    """A bucket of this name, or of one that no other has."""
    name = name or f"bucket-{next(_numbers)}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
    )
    client.create_bucket(Bucket=name)
    return name
