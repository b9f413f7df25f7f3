"""``video-api keys``, against the real API over HTTP."""

import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from serve_app.access.api_key import is_well_formed
from serve_app.client import Client
from tests.parts.serve_app.cli.invocation import Run, parsed
from tests.parts.serve_app.cli.live_service import LiveService


def made(run: Run, *options: str) -> tuple[str, str]:
    """The id and the secret of a new key."""
    key = parsed(run("keys", "create", "ann", *options, "--json"))
    return key["key_id"], key["secret"]


def test_create_prints_the_secret_for_a_script_and_the_rest_beside_it(run: Run) -> None:
    result = run("keys", "create", "ann's laptop", "--scope", "read", "--rate", "60", "--usd-per-day", "2.50")

    assert result.exit_code == 0, result.output
    assert is_well_formed(result.stdout.strip())
    assert result.stdout.strip() not in result.stderr
    for said in ("key_", "ann's laptop", "read", "60/min", "$2.5/day", "only time"):
        assert said in result.stderr


def test_create_takes_scopes_expiry_and_limits(run: Run) -> None:
    options = ["--scope", "read", "--scope", "generate", "--expires", "30d", "--rate", "60", "--running", "2"]
    key = parsed(run("keys", "create", "ann", *options, "--queued", "100", "--usd-per-day", "5", "--json"))

    assert key["scopes"] == ["generate", "read"]
    limits = {"requests_per_minute": 60, "running_jobs": 2, "queued_jobs": 100, "usd_per_day": 5}
    assert key["limits"] == limits
    lives = datetime.fromisoformat(key["expires_at"]) - datetime.fromisoformat(key["created_at"])
    assert lives == timedelta(days=30)


@pytest.mark.parametrize("expires", ["30", "d", "1y", "1d2h"])
def test_a_span_that_is_none_is_a_usage_error(run: Run, expires: str) -> None:
    result = run("keys", "rotate", "key_x", "--overlap", expires)

    assert (result.exit_code, result.stdout) == (2, "")
    assert f"--overlap {expires}: a number and" in result.stderr


def test_a_new_key_works_until_it_is_revoked(run: Run) -> None:
    key_id, secret = made(run)
    assert run("list", key=secret).exit_code == 0

    result = run("keys", "revoke", key_id)

    assert result.stdout == f"key {key_id} (ann) is revoked\n"
    assert run("list", key=secret).exit_code == 4


def test_rotate_prints_another_secret(run: Run) -> None:
    key_id, secret = made(run)
    result = run("keys", "rotate", key_id, "--overlap", "1h")

    another = result.stdout.strip()
    assert is_well_formed(another)
    assert another != secret
    assert [run("list", key=key).exit_code for key in (secret, another)] == [0, 0]
    last = run("keys", "rotate", key_id).stdout.strip()
    assert [run("list", key=key).exit_code for key in (secret, another, last)] == [4, 4, 0]


def test_list_shows_keys_and_no_secrets(run: Run) -> None:
    first, secret = made(run, "--queued", "3")
    second, _ = made(run, "--expires", "1w")
    run("keys", "revoke", second)

    result = run("keys", "list")

    lines = result.stdout.splitlines()
    assert re.split(r" {2,}", lines[0]) == [
        "KEY", "NAME", "BEGINS", "SCOPES", "LIMITS", "CREATED", "LAST USED", "ENDS"
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[1:]] == [second, first]
    assert "revoked" in lines[1]
    assert "3 queued" in lines[2]
    assert f"{secret[:9]}…" in lines[2]
    assert secret not in result.stdout
    assert [key["key_id"] for key in parsed(run("keys", "list", "--json"))] == [second, first]


def test_a_key_is_told_what_it_may_do_and_uses(run: Run, service: LiveService, picture: Path) -> None:
    """Any key may ask, of itself."""
    key_id, secret = made(run, "--queued", "3", "--rate", "60")
    with Client(service.url, secret) as client:
        # Its job waits until it is submitted.
        client.upload(picture, "image")

    lines = [re.split(r" {2,}", line) for line in run("keys", "me", key=secret).stdout.splitlines()]
    assert lines == [
        ["key", key_id],
        ["name", "ann"],
        ["scopes", "generate, read"],
        ["requests per minute", "at most 60"],
        ["running jobs", "0, no limit"],
        ["queued jobs", "1, at most 3"],
        ["dollars in 24 hours", "0, no limit"],
    ]
    assert parsed(run("keys", "me", "--json", key=secret))["queued_jobs"] == 1
    assert "the service's own API_KEY" in run("keys", "me").stdout


def test_a_key_without_the_scope_is_refused_with_advice(run: Run) -> None:
    _, secret = made(run, "--scope", "read")
    result = run("keys", "list", key=secret)

    assert result.exit_code == 4
    assert result.stderr == (
        "error: forbidden: This needs a key with the scope `admin`. Give another with --key or VIDEO_API_KEY; "
        "`video-api keys create` makes one.\n"
    )


def test_an_unknown_key_is_refused(run: Run) -> None:
    result = run("keys", "revoke", "key_none")
    assert result.exit_code == 4
    assert "key_not_found" in result.stderr
