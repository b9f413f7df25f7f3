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


@pytest.mark.parametrize("key", ["", "inputs", "inputs/job", "elsewhere/job/x", "xinputs/job/y"])
def test_what_is_not_ours_has_no_owner(key: str) -> None:
    assert keys.owner(key) is None
