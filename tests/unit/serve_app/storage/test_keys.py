"""Keys belong to the folder they were made for, and to no other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.storage import keys

NONCE = "0123456789abcdef"
IDS = st.uuids().map(str)
NONCES = st.binary(min_size=8, max_size=8).map(bytes.hex)


def made(folder: str) -> list[str]:
    return [
        *(keys.upload(folder, kind) for kind in ("image", "video", "audio")),
        keys.verified(folder, "image", "png"),
        keys.output(folder, 1),
        keys.output(folder, 12),
        keys.poster(folder, 12),
    ]


@given(job=IDS, nonce=NONCES | st.just(""))
def test_a_keys_owner_is_whom_it_was_made_for(job: str, nonce: str) -> None:
    folder = f"{job}/{nonce}" if nonce else job
    for key in made(folder):
        assert keys.owner(key) == (job, nonce)
        assert any(key.startswith(prefix) for prefix in keys.prefixes(folder))


@given(job=IDS, mine=NONCES, other=NONCES)
def test_no_folder_holds_anothers_keys(job: str, mine: str, other: str) -> None:
    if mine != other:
        for key in made(f"{job}/{mine}"):
            assert not any(key.startswith(prefix) for prefix in keys.prefixes(f"{job}/{other}"))


@pytest.mark.parametrize("folder", [f"job/{NONCE}", "job"])
def test_uploads_are_told_from_all_else(folder: str) -> None:
    uploads = [keys.upload(folder, kind) for kind in ("image", "video", "audio")]
    assert [keys.uploaded_to(key) for key in uploads] == [folder] * 3
    for key in (keys.verified(folder, "image", "png"), keys.output(folder, 1), f"outputs/{folder}/input.jpg", "x"):
        assert keys.uploaded_to(key) is None


def test_weights_belong_to_their_name_and_to_no_job() -> None:
    for key in (keys.weights_manifest("ltx2"), keys.weights_file("ltx2", "0" * 64, "unet/weights.safetensors")):
        assert keys.weights_name(key) == "ltx2"
        assert key.startswith(keys.weights_folder("ltx2"))
        assert not key.startswith(keys.weights_folder("ltx"))
        # So that whoever cleans up after jobs leaves them alone.
        assert keys.owner(key) is None
    # A repository may have a manifest.json of its own.
    assert keys.weights_file("ltx2", "0" * 64, "manifest.json") != keys.weights_manifest("ltx2")


def test_links_lie_where_a_rule_of_the_bucket_can_expire_them() -> None:
    first, second = keys.weights_link(), keys.weights_link()
    assert first != second
    for key in (first, second):
        assert key.startswith(keys.WEIGHTS_LINKS)
        assert not key.startswith(keys.WEIGHTS)
        assert keys.weights_name(key) is None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "with space", "x" * 101, "é"])
def test_a_name_of_weights_is_one_folder(name: str) -> None:
    with pytest.raises(ValueError, match="no name for weights"):
        keys.weights_folder(name)


@pytest.mark.parametrize("key", ["", "inputs", "inputs/job", "elsewhere/job/x", "xinputs/job/y"])
def test_what_is_not_ours_has_no_owner(key: str) -> None:
    assert keys.owner(key) is None
