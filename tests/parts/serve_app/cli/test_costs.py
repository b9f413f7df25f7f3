"""``video-api costs``, on a head's database."""

import psycopg
import pytest
from typer.testing import CliRunner, Result

from serve_app.cli import app
from tests.parts.serve_app.cli.invocation import parsed


@pytest.fixture(autouse=True)
def head(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    for name, value in (("API_KEY", "k" * 32), ("SECRET_KEY", "s" * 32), ("PUBLIC_URL", "http://head")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DATABASE_URL", database_url)


@pytest.fixture
def books(database_url: str) -> None:
    """Two days ago a node made two videos and a failure, and another did not start; a month ago there was one, too."""
    with psycopg.connect(database_url.replace("+psycopg", "", 1)) as db:
        for label, slot, days in (("a", "slot-1", 2), ("b", "slot-2", 2), ("c", "slot-3", 30)):
            db.execute(
                "INSERT INTO rentals (label, slot_id, node_type, state, since, reserved_at, offer, host, why,"
                " stretch_at, ended_at, worked_at) VALUES (%s, %s, 'gpu_a100', 'ended', now(), now(), '', '', 'x',"
                " now(), now(), CASE WHEN %s THEN now() END)",
                (label, slot, label != "b"),
            )
            for state, begin, end, usd in (("loading", 0, 300, 0.25), ("busy", 300, 1200, 0.75)):
                if label != "b" or state == "loading":
                    db.execute(
                        "INSERT INTO node_costs SELECT %s, at + make_interval(secs => %s),"
                        " at + make_interval(secs => %s), 'gpu_a100', %s, %s"
                        " FROM (SELECT now() - make_interval(days => %s) AS at) begun",
                        (label, begin, end, state, usd, days),
                    )
        for job, slot, outcome, days in (
            ("1", "slot-1", "completed", 2), ("2", "slot-1", "completed", 2), ("3", "slot-1", "failed", 2),
            ("4", "slot-3", "completed", 30), ("5", "guest", "completed", 2),
        ):  # fmt: skip
            db.execute(
                "INSERT INTO runs SELECT %s, 1, at, 'ltx2', %s, 1, at, 200, %s"
                " FROM (SELECT now() - make_interval(days => %s) AS at) begun",
                (job, slot, outcome, days),
            )


def costs(*words: str) -> Result:
    return CliRunner().invoke(app, ["costs", *words])


def test_what_the_last_week_has_cost(books: None) -> None:
    found = parsed(costs("--json"))
    (line,) = found["lines"]
    assert line == {
        "model": "ltx2",
        "jobs": 3,
        "videos": 2,
        "usd": 1.0,
        "usd_per_video": 0.5,
        "busy_s": 600,
        "rented_s": 1200,
        "utilisation": 0.5,
        "cold_start_share": 0.25,
    }
    assert (found["total"]["usd"], found["total"]["unattributed_usd"]) == (1.25, 0.25)


def test_longer_ago_and_by_node(books: None) -> None:
    found = parsed(costs("--json", "--since", "5w", "--by", "node"))
    assert [(line["node"], line["usd"], line["videos"]) for line in found["lines"]] == [
        ("b", 0.25, 0),
        ("slot-1", 1.0, 2),
        ("slot-3", 1.0, 1),
    ]
    days = parsed(costs("--json", "--since", "5w", "--by", "day"))["lines"]
    assert sum(line["usd"] for line in days) == 2.25
    assert [line["day"] for line in days] == sorted({line["day"] for line in days})


def test_a_person_reads_a_table(books: None) -> None:
    found = costs()
    assert found.exit_code == 0
    heading, line, total, lost = found.stdout.splitlines()
    assert heading.split("  ")[0] == "MODEL"
    assert line.split() == ["ltx2", "3", "2", "1.00", "0.5000", "50", "%", "25", "%"]
    assert total.split()[:5] == ["all", "3", "2", "1.25", "0.6250"]
    assert "$0.25" in lost


def test_when_nothing_was_rented_it_says_so() -> None:
    assert costs().stdout == "Nothing was rented in that time.\n"


@pytest.mark.parametrize(
    ("words", "said"), [(("--since", "7"), "--since 7: a number and"), (("--by", "user"), "--by user: there are model")]
)
def test_what_it_does_not_know_it_refuses(words: tuple[str, ...], said: str) -> None:
    found = costs(*words)
    assert found.exit_code == 2
    assert said in found.stderr


def test_it_needs_the_database_of_a_head(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    bare = database_url.replace("/shared?", "/template1?")
    monkeypatch.setenv("DATABASE_URL", bare)
    found = costs()
    assert found.exit_code == 2
    assert "has this version run on it" in found.stderr
