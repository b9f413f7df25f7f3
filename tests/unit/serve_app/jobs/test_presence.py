"""Which deployments are to be had, by Serve's and the launcher's word."""

from collections.abc import Iterable

import pytest

from serve_app.jobs.conditions import WaitCode
from serve_app.jobs.outlooks import Outlook
from serve_app.jobs.presence import NO_MACHINE_FIRST_S, NO_MACHINE_S, Presence
from serve_app.jobs.readiness import ModelHealth

NAMES = {"ltx2", "ltx2-40gb", "wav2lip"}


class Looks:
    """Every two seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.presence = Presence(lambda: self.now)

    def had(self, live: Iterable[str] = (), **codes: str | None) -> set[str]:
        healths = {name: ModelHealth(working=name in live, trouble=None, live=name in live) for name in NAMES}
        outlooks = {
            name.replace("_", "-"): Outlook(start_s=300, code=code, message=code and "why")
            for name, code in codes.items()
        }
        return self.presence.had(healths, outlooks, NAMES)

    def for_a_while(self, seconds: float, live: Iterable[str] = (), **codes: str | None) -> set[str]:
        end = self.now + seconds
        found = self.had(live, **codes)
        while self.now < end:
            self.now += 2
            found = self.had(live, **codes)
        return found


@pytest.mark.parametrize("code", [WaitCode.CAP_REACHED, WaitCode.NO_CREDIT])
def test_what_may_not_be_rented_now_is_to_be_had_only_where_nothing_of_the_model_is(code: str) -> None:
    looks = Looks()
    assert looks.had(["ltx2"], ltx2=code, ltx2_40gb=code) == {"ltx2"}
    # A node of another model is no help.
    assert looks.had(["wav2lip"], ltx2=code, ltx2_40gb=code) == NAMES
    assert looks.had(["ltx2"], ltx2=code, ltx2_40gb=None) == {"ltx2", "ltx2-40gb"}


@pytest.mark.parametrize("code", [WaitCode.NO_MACHINE, WaitCode.WEIGHTS_UNAVAILABLE])
def test_what_nobody_offers_is_not_to_be_had(code: str) -> None:
    assert Looks().had(ltx2=None, ltx2_40gb=code) == {"ltx2"}
    assert Looks().had(["ltx2-40gb"], ltx2=None, ltx2_40gb=code) == {"ltx2", "ltx2-40gb"}


def test_what_does_not_start_is_no_other_class_either() -> None:
    healths = {name: ModelHealth(working=False, trouble=None, live=name == "ltx2") for name in NAMES}
    outlook = Outlook(start_s=300, code=WaitCode.CAP_REACHED, message="why")
    assert Presence().had(healths, {"ltx2-40gb": outlook}, {"ltx2-40gb"}) == {"ltx2-40gb"}


def test_that_nobody_has_a_machine_is_remembered_once_it_was_said_for_long() -> None:
    """Its jobs have gone elsewhere, so the launcher does not say it any more. Else they would come back at once."""
    looks = Looks()
    looks.for_a_while(NO_MACHINE_FIRST_S, ltx2=None, ltx2_40gb=WaitCode.NO_MACHINE)
    assert looks.for_a_while(NO_MACHINE_S - 4, ltx2=None, ltx2_40gb=None) == {"ltx2"}
    # A node that is there all the same counts.
    assert looks.had(["ltx2-40gb"], ltx2=None, ltx2_40gb=None) == {"ltx2", "ltx2-40gb"}
    # Once more, and once is enough.
    looks.had(ltx2=None, ltx2_40gb=WaitCode.NO_MACHINE)
    assert looks.for_a_while(NO_MACHINE_S - 4, ltx2=None, ltx2_40gb=None) == {"ltx2"}
    assert looks.for_a_while(6, ltx2=None, ltx2_40gb=None) == {"ltx2", "ltx2-40gb"}


def test_a_machine_that_is_found_soon_keeps_its_jobs() -> None:
    looks = Looks()
    looks.for_a_while(NO_MACHINE_FIRST_S - 20, ltx2=None, ltx2_40gb=WaitCode.NO_MACHINE)
    assert looks.had(ltx2=None, ltx2_40gb=None) == {"ltx2", "ltx2-40gb"}
    # Much later that is another matter.
    looks.for_a_while(NO_MACHINE_FIRST_S + 10, ltx2=None, ltx2_40gb=None)
    looks.for_a_while(NO_MACHINE_FIRST_S - 20, ltx2=None, ltx2_40gb=WaitCode.NO_MACHINE)
    assert looks.had(ltx2=None, ltx2_40gb=None) == {"ltx2", "ltx2-40gb"}
