"""``video-api nodes``, on a head's database: what is rented, what joined, what both do, and what waits."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from typer.testing import CliRunner, Result

from serve_app.cli import app
from serve_app.settings import Settings
from tests.parts.serve_app.cli.invocation import parsed

#: Some time ago, when all tests of a run have their turn.
NOW = datetime.now(UTC)
#: Of the labels of this head's rentals.
VA = Settings(secret_key="s" * 32).fleet_prefix  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def head(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    for name, value in (("API_KEY", "k" * 32), ("SECRET_KEY", "s" * 32), ("PUBLIC_URL", "http://head")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DATABASE_URL", database_url)


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url.replace("+psycopg", "", 1), autocommit=True) as connection:
        yield connection


def rent(
    db: psycopg.Connection, label: str, state: str, key: bytes | None, *, instance: str | None = "7001", why: str = ""
) -> None:
    """For a slot that is called like it, four minutes ago; $0.30 of GPU and $0.10 of disk an hour."""
    row = {
        **{"label": label, "slot_id": f"slot-of-{label}", "node_type": "gpu_4090", "state": state, "offer": "1"},
        **{"since": NOW - timedelta(minutes=4), "reserved_at": NOW, "stretch_at": NOW, "host": "2"},
        **{"instance": instance, "begun_at": instance and NOW, "ended_at": NOW if state == "ended" else None},
        **{"door_key": key and key.hex(), "why": why or None, "gpu_usd_per_hour": 0.3, "storage_usd_per_hour": 0.1},
    }
    values = ", ".join(f"%({name})s" for name in row)
    db.execute(f"INSERT INTO rentals ({', '.join(row)}) VALUES ({values})", row)
    for begun, usd in ((10, 0.25), (5, 0.125)):
        db.execute(
            "INSERT INTO node_costs (label, node_type, state, begun_at, until, gpu_usd, storage_usd, bandwidth_usd)"
            " VALUES (%s, 'gpu_4090', 'loading', %s, %s, %s, 0, 0)",
            (label, NOW - timedelta(minutes=begun), NOW, usd),
        )


def invite(db: psycopg.Connection, slot: int, name: str, key: bytes, *, joined: bool, revoked: bool = False) -> None:
    """One that has joined was heard of just now."""
    since = NOW if joined else None
    db.execute(
        "INSERT INTO nodes (slot, name, token_hash, token_expires_at, key_hash, joined_at, last_seen_at, revoked_at,"
        " bytes_in, bytes_out)"
        " VALUES (%s, %s, %s, now() + interval '1 h', %s, %s, CASE WHEN %s THEN now() END, %s, 1500000, 2000000)",
        (slot, name, key, key if joined else None, since, joined, NOW if revoked else None),
    )


def nodes(*words: str) -> Result:
    return CliRunner().invoke(app, ["nodes", *words])


@pytest.fixture
def day(db: psycopg.Connection) -> None:
    """One of each."""
    invite(db, 2, f"{VA}-works", b"w" * 32, joined=True)
    rent(db, f"{VA}-works", "busy", b"w" * 32)
    invite(db, 3, "by-hand", b"h" * 32, joined=True)
    invite(db, 4, f"{VA}-installs", b"i" * 32, joined=False)
    rent(db, f"{VA}-installs", "installing", b"i" * 32, instance="7002")
    # Nobody knows yet whether it is rented; and one that is shut out, whose end the provider has not accepted.
    rent(db, f"{VA}-fresh", "renting", None, instance=None)
    invite(db, 5, f"{VA}-ends", b"e" * 32, joined=True, revoked=True)
    rent(db, f"{VA}-ends", "ending", None, why="dismissed")
    rent(db, f"{VA}-ended", "ended", None, why="dismissed")
    for job, ended in (("0199aaaa-1", None), ("0199bbbb-2", None), ("0199cccc-3", NOW)):
        db.execute(
            "INSERT INTO runs (job_id, attempt, started_at, model, node, effort, ended_at, busy_s, outcome)"
            " VALUES (%s, 1, %s, 'wav2lip', 'slot-of-' || %s, 1, %s, %s, %s)",
            (job, NOW - timedelta(minutes=1), f"{VA}-works", ended, ended and 60, ended and "completed"),
        )
    for model, message, minutes in (("ltx2", "Too dear.", 0), ("wav2lip", None, 0), ("still", "Long ago.", 3)):
        db.execute(
            "INSERT INTO outlooks (deployment, code, message, start_s, seen_at)"
            " VALUES (%s, %s, %s, 60, now() - make_interval(mins => %s))",
            (model, message and "cap_reached", message, minutes),
        )


@pytest.mark.usefixtures("day")
def test_each_machine_once_with_what_it_costs_and_does() -> None:
    found = {row["name"]: row for row in parsed(nodes("--json"))}
    assert len(found) == len(parsed(nodes("--json")))
    shown = ("slot", "state", "type", "instance", "phase", "usd_per_hour", "usd", "jobs")
    assert {name: tuple(row[each] for each in shown) for name, row in found.items()} == {
        f"{VA}-works": (2, "up", "gpu_4090", "7001", "busy", 0.4, 0.375, ["0199aaaa-1", "0199bbbb-2"]),
        "by-hand": (3, "up", None, None, None, None, None, []),
        f"{VA}-installs": (4, "invited", "gpu_4090", "7002", "installing", 0.4, 0.375, []),
        f"{VA}-fresh": (None, "-", "gpu_4090", None, "renting", 0.4, 0.375, []),
        f"{VA}-ends": (None, "-", "gpu_4090", "7001", "ending", 0.4, 0.375, []),
    }
    since = datetime.fromisoformat(found[f"{VA}-works"]["phase_since"])
    assert since == NOW - timedelta(minutes=4)


@pytest.mark.usefixtures("day")
def test_one_that_is_shut_out_is_there_until_it_is_given_back(db: psycopg.Connection) -> None:
    """And once: its place in the mesh is nobody's any more. Who came by hand and was revoked has nothing else."""
    invite(db, 6, "another", b"a" * 32, joined=True, revoked=True)
    rows = parsed(nodes("--json"))
    ending = [row for row in rows if row["name"] == f"{VA}-ends"]
    assert [(row["slot"], row["state"], row["phase"]) for row in ending] == [(None, "-", "ending")]
    assert [(row["slot"], row["state"]) for row in rows if row["name"] == "another"] == [(6, "revoked")]
    db.execute("UPDATE rentals SET state = 'ended', ended_at = now() WHERE state = 'ending'")
    assert f"{VA}-ends" not in nodes().stdout


@pytest.mark.usefixtures("day")
def test_a_person_reads_a_table_and_why_others_wait() -> None:
    lines = nodes().stdout.splitlines()
    rows = {line.split()[1]: line.split() for line in lines if line.split()}
    assert lines[0].split()[:9] == ["SLOT", "NAME", "STATE", "TYPE", "PHASE", "FOR", "$/H", "$", "DOES"]
    assert rows[f"{VA}-works"][:5] == ["2", f"{VA}-works", "up", "gpu_4090", "busy"]
    assert "0.400  0.375  0199aaaa, 0199bbbb" in next(line for line in lines if f"{VA}-works" in line)
    assert rows["by-hand"][:10] == ["3", "by-hand", "up", "by", "hand", "-", "-", "-", "-", "-"]
    assert rows[f"{VA}-fresh"][:5] == ["-", f"{VA}-fresh", "-", "gpu_4090", "renting"]
    assert lines[-2:] == ["", "ltx2 waits: Too dear."]


def test_where_nothing_is_rented_nothing_is_said_of_it(db: psycopg.Connection) -> None:
    invite(db, 3, "by-hand", b"h" * 32, joined=True)
    heading, row = nodes().stdout.splitlines()
    assert heading.split() == ["SLOT", "NAME", "STATE", "LAST", "SEEN", "FROM", "NODE", "TO", "NODE"]
    assert row.split()[:3] == ["3", "by-hand", "up"]


def test_a_reason_is_shown_as_it_is_written(db: psycopg.Connection) -> None:
    """Not as markup of the terminal's."""
    message = "Weights [bold]x[/bold] are missing."
    db.execute(
        "INSERT INTO outlooks (deployment, code, message, start_s, seen_at) VALUES ('ltx2', 'x', %s, 60, now())",
        (message,),
    )
    assert nodes().stdout.splitlines()[-1] == f"ltx2 waits: {message}"


def test_a_node_s_name_is_shown_as_it_is(db: psycopg.Connection) -> None:
    """Whoever runs on its machine chooses it, and would hide all others from the operator."""
    invite(db, 2, "[/red]", b"1" * 32, joined=True)
    invite(db, 3, "[link=http://evil]x", b"2" * 32, joined=True)
    shown = CliRunner().invoke(app, ["nodes"])
    assert shown.exit_code == 0, shown.output
    assert "[/red]" in shown.output
    assert "[link=http://evil]x" in shown.output
