"""Where the weights of rented nodes are, by what a head's environment says: a bucket, a URL, a hub, or nothing."""

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from cluster.head.renting import NoWeights
from cluster.node.download import Manifest
from serve_app.cli import supply as module
from serve_app.cli.supply import Supply
from serve_app.cli.weights import mirrors_of
from serve_app.settings import Settings
from serve_app.weights.source import LocalSource
from tests.fakes.http_source import HttpSource, raw, reply, stalled
from tests.fakes.s3 import make_bucket, s3_server

TYPE = "gpu_4090"
SIGNED = "?X-Amz-Signature=of-the-test"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def settings(endpoint: str) -> Settings:
    keys = {"r2_access_key": SecretStr("k"), "r2_secret_key": SecretStr("secret-of-the-test")}
    return Settings(r2_endpoint=endpoint, r2_bucket=make_bucket(endpoint), **keys)


@pytest.fixture
async def store() -> AsyncIterator[HttpSource]:
    manifest = Manifest(files=()).model_dump_json().encode()
    async with HttpSource({"/manifest.json": reply(200, manifest), "/garbage": reply(200, b"<html>")}) as running:
        for status in (403, 404, 302, 429, 503):
            running.routes[f"/{status}"] = reply(status)
        running.routes["/cut"] = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
        running.routes["/silent"] = stalled()
        yield running


def supply(settings: Settings, environment: Mapping[str, str] | None = None) -> Supply:
    return Supply(settings, {TYPE: ["wav2lip"]}, environment or {})


def mirror(settings: Settings, folder: Path, name: str, content: bytes = b"weights") -> None:
    path = folder / "wav2lip_gan.pth"
    path.write_bytes(content)
    source = LocalSource(path)
    mirrors_of(settings).copy(source, source.files(), name, lambda what, done, total: None)


async def refused(found: Supply) -> NoWeights:
    """As both ways of asking say it."""
    with pytest.raises(NoWeights) as checked:
        await found.check(TYPE)
    return checked.value


async def test_the_mirror_that_is_called_like_the_model(settings: Settings, tmp_path: Path) -> None:
    found = supply(settings)
    error = await refused(found)
    assert "no weights wav2lip for wav2lip are in the bucket: `video-api weights mirror" in str(error)
    assert not error.passing
    with pytest.raises(NoWeights):
        await found.variables(TYPE)
    mirror(settings, tmp_path, "wav2lip")
    await found.check(TYPE)
    await fetched(await found.variables(TYPE), b"weights")


async def fetched(variables: Mapping[str, str], content: bytes) -> None:
    """A node without any key gets them."""
    assert set(variables) == {"WAV2LIP_WEIGHTS"}
    assert "secret-of-the-test" not in variables["WAV2LIP_WEIGHTS"]
    async with httpx.AsyncClient(trust_env=False) as node:
        manifest = Manifest.model_validate_json((await node.get(variables["WAV2LIP_WEIGHTS"])).content)
        (file,) = manifest.files
        assert (await node.get(file.url)).content == content


async def test_the_mirror_that_the_head_names(settings: Settings, tmp_path: Path) -> None:
    mirror(settings, tmp_path, "wav2lip", b"older")
    mirror(settings, tmp_path, "mine", b"newer")
    found = supply(settings, {"WAV2LIP_WEIGHTS": "mine"})
    await found.check(TYPE)
    await fetched(await found.variables(TYPE), b"newer")
    assert "no weights another for" in str(await refused(supply(settings, {"WAV2LIP_WEIGHTS": "another"})))


@pytest.mark.parametrize("name", ["/models/wav2lip.pth", "a/b/c", "../up", "two words", "a" * 200])
async def test_what_can_t_be_a_mirror_is_none(settings: Settings, name: str) -> None:
    found = supply(settings, {"WAV2LIP_WEIGHTS": name})
    assert f"no weights {name} for wav2lip are in the bucket" in str(await refused(found))
    with pytest.raises(NoWeights):
        await found.variables(TYPE)


async def test_a_bucket_that_refuses_may_do_so_for_a_moment(settings: Settings) -> None:
    error = await refused(supply(settings.model_copy(update={"r2_bucket": "nowhere"})))
    assert "The object store answered 404 NoSuchBucket" in str(error)
    assert error.passing
    gone = supply(settings.model_copy(update={"r2_endpoint": "http://127.0.0.1:9"}))
    error = await refused(gone)
    assert error.passing
    assert str(error) == (
        "the bucket with the weights wav2lip for wav2lip refuses: The object store can't be reached:"
        " EndpointConnectionError."
    )


async def test_a_manifest_by_its_url(settings: Settings, store: HttpSource) -> None:
    url = store.url("/manifest.json") + SIGNED
    found = supply(settings, {"WAV2LIP_WEIGHTS": url})
    await found.check(TYPE)
    assert await found.variables(TYPE) == {"WAV2LIP_WEIGHTS": url}


@pytest.mark.parametrize(
    ("path", "said", "passing"),
    [
        ("/403", "its store answers 403", False),
        ("/404", "its store answers 404", False),
        # A node follows none either.
        ("/302", "its store answers 302", False),
        ("/429", "its store answers 429", True),
        ("/503", "its store answers 503", True),
        ("/garbage", "no manifest can be read there (ValidationError)", False),
        ("/cut", "its store does not answer (RemoteProtocolError)", True),
        ("/silent", "its store does not answer (ReadTimeout)", True),
    ],
)
async def test_a_url_that_is_no_manifest_s_says_why_and_never_where(
    settings: Settings, store: HttpSource, monkeypatch: pytest.MonkeyPatch, path: str, said: str, passing: bool
) -> None:
    monkeypatch.setattr(module, "_READ_S", 0.5)
    error = await refused(supply(settings, {"WAV2LIP_WEIGHTS": store.url(path) + SIGNED}))
    assert (str(error), error.passing) == (f"WAV2LIP_WEIGHTS: {said}", passing)


@pytest.mark.parametrize(
    ("url", "said", "passing"),
    [
        ("http://127.0.0.1:9/x", "its store does not answer (ConnectError)", True),
        ("http://store:port/x", "no manifest can be read there (InvalidURL)", False),
        ("http://", "its store does not answer (UnsupportedProtocol)", True),
    ],
)
async def test_a_url_that_leads_nowhere(settings: Settings, url: str, said: str, passing: bool) -> None:
    error = await refused(supply(settings, {"WAV2LIP_WEIGHTS": url}))
    assert (str(error), error.passing) == (f"WAV2LIP_WEIGHTS: {said}", passing)


async def test_a_repository_of_the_hub_is_the_node_s_to_fetch() -> None:
    found = supply(Settings(), {"WAV2LIP_WEIGHTS": "someone/model"})
    await found.check(TYPE)
    assert await found.variables(TYPE) == {"WAV2LIP_WEIGHTS": "someone/model"}


async def test_nothing_at_all_and_who_wants_it_so() -> None:
    error = await refused(supply(Settings()))
    assert str(error) == "WAV2LIP_WEIGHTS is not set, and there is no bucket (R2_ENDPOINT) with a mirror of them"
    error = await refused(supply(Settings(), {"WAV2LIP_WEIGHTS": "mine"}))
    assert str(error) == "WAV2LIP_WEIGHTS: mine would be a mirror, and there is no bucket (R2_ENDPOINT)"
    found = supply(Settings(allow_random_weights=True))
    await found.check(TYPE)
    assert await found.variables(TYPE) == {}


async def test_a_type_of_two_models_needs_the_weights_of_both(settings: Settings, tmp_path: Path) -> None:
    mirror(settings, tmp_path, "ltx2")
    found = Supply(settings, {TYPE: ["ltx2", "wav2lip"]}, {})
    assert "wav2lip" in str(await refused(found))
    mirror(settings, tmp_path, "wav2lip")
    assert set(await found.variables(TYPE)) == {"LTX2_WEIGHTS", "WAV2LIP_WEIGHTS"}
    assert os.environ.get("WAV2LIP_WEIGHTS") is None
