"""What the fleet says, in the service's words."""

import pytest

from cluster.fleet.waiting import Reason, Wait
from serve_app.cli.outlook import CODES, condition_of
from serve_app.jobs.conditions import HOPELESS, Condition


def test_every_reason_has_a_code_and_only_missing_weights_close_a_model() -> None:
    """All the others pass by themselves."""
    assert set(CODES) == set(Reason)
    assert [reason for reason, code in CODES.items() if code in HOPELESS] == [Reason.NO_WEIGHTS]


@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        (
            Wait(Reason.HOUR_CAP, "$1.200 of $1.000 per hour"),
            Condition(
                "cap_reached",
                "All nodes together would cost more by the hour than they may ($1.200 of $1.000 per hour).",
            ),
        ),
        (Wait(Reason.NO_OFFER), Condition("no_machine", "No machine that fits is on offer.")),
    ],
)
def test_the_numbers_are_said_too(wait: Wait, expected: Condition) -> None:
    assert condition_of(wait) == expected
