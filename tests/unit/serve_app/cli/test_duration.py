"""Spans of time, as options of the command line have them."""

from datetime import UTC, datetime, timedelta

import pytest
from typer.models import OptionInfo

from serve_app.cli.duration import seconds, span
from serve_app.cli.terminal import UsageProblem


@pytest.mark.parametrize(
    ("text", "expected"), [("0s", 0), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("1d", 86400), ("2w", 14 * 86400)]
)
@pytest.mark.parametrize("bare", ["", "h"])
def test_a_number_and_a_unit_is_a_span(text: str, bare: str, expected: float) -> None:
    assert seconds("--for", text, bare) == expected


@pytest.mark.parametrize(("bare", "expected"), [("s", 3), ("m", 180), ("h", 10800)])
def test_a_bare_number_has_the_unit_of_its_option(bare: str, expected: float) -> None:
    assert seconds("--for", "3", bare) == expected


@pytest.mark.parametrize("text", ["", "d", "1y", "1d2h", "-1d", "nan", "infw", "1e300w", "99999w"])
@pytest.mark.parametrize("bare", ["", "s"])
def test_what_is_no_span_is_said_with_the_name_of_the_option(text: str, bare: str) -> None:
    with pytest.raises(UsageProblem, match=f"^--for {text}: a number and"):
        seconds("--for", text, bare)


def test_a_bare_number_is_refused_where_no_unit_goes_without_saying() -> None:
    with pytest.raises(UsageProblem):
        seconds("--for", "30")


def test_the_longest_span_can_be_added_to_a_date() -> None:
    now, longest = datetime.now(UTC), timedelta(seconds=seconds("--for", "5200w"))
    assert now - longest < now < now + longest


def test_help_says_what_a_bare_number_is() -> None:
    made = span("--for", "How long.", bare="m")
    assert isinstance(made, OptionInfo)
    assert made.help == "How long. A bare number: minutes."
