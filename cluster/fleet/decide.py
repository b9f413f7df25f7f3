"""One look at everything, and what is to be done. Pure: it asks nobody, and changes nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from cluster.fleet.caps import Caps, too_dear
from cluster.fleet.gates import Breaker
from cluster.fleet.ledger import Stretch, moved
from cluster.fleet.limits import Limits, most_traffic, step_s
from cluster.fleet.provider import Machine, Status
from cluster.fleet.rental import Rental, State, Why
from cluster.fleet.report import WEIGHTS_FAULT, Report
from cluster.fleet.slots import Slot
from cluster.fleet.waiting import Reason, Wait

_ENDS = {
    Status.BROKEN: Why.BROKEN,
    Status.EXITED: Why.EXITED,
    Status.OFFLINE: Why.OFFLINE,
    Status.OUTBID: Why.OUTBID,
}

#: Prices go through other people's floating point numbers.
_ROUNDING = 1.0001


@dataclass(frozen=True)
class Listing:
    """The provider's machines that we know or that have our label, as they were at some moment after ``asked_at``."""

    asked_at: datetime
    machines: Sequence[Machine]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """All that a pass decides by: what is wished for, what is rented, and what the provider and the nodes say."""

    now: datetime
    caps: Caps
    limits: Limits
    #: By type.
    breakers: Mapping[str, Breaker]
    #: By type: why nothing is rented for any of its slots.
    closed: Mapping[str, Wait]
    #: In the order in which they were added.
    slots: Sequence[Slot]
    #: That have not ended.
    rentals: Sequence[Rental]
    #: Labels of those of them that somebody is renting right now: nobody else touches them.
    renting: frozenset[str]
    #: The same of those beside which a second one may be started.
    races: frozenset[str]
    #: Ids of slots that somebody is at, reserved or not yet.
    begun: frozenset[str]
    #: None: the provider did not say.
    listing: Listing | None
    #: By label: since when no list has shown it, and what it said last.
    missed: Mapping[str, datetime]
    reports: Mapping[str, Report]
    spent_today_usd: float


@dataclass(frozen=True)
class Move:
    """It is in another state."""

    rental: Rental
    done: Sequence[Stretch] = ()


@dataclass(frozen=True)
class End:
    """It has to be given back, or once more."""

    rental: Rental
    why: Why
    detail: str = ""


@dataclass
class Decision:
    """What is to be done, in this order."""

    moves: list[Move] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    #: They are gone for certain.
    closings: list[Rental] = field(default_factory=list)
    #: They have our label, and nobody has rented them.
    orphans: list[Machine] = field(default_factory=list)
    #: Their node could work, and is lost: whoever knew it is told so, instead of that it is another one now.
    lost: list[Slot] = field(default_factory=list)
    fills: list[Slot] = field(default_factory=list)
    #: Those that get a second one beside the one that starts.
    races: list[tuple[Slot, Rental]] = field(default_factory=list)
    #: By slot: why nothing is rented for it.
    waits: dict[str, Wait] = field(default_factory=dict)


def decide(seen: Situation) -> Decision:
    """See :class:`Decision`."""
    decision = Decision()
    shown = _shown(seen, decision)
    lost = {each.slot_id for each in seen.rentals if each.lost}
    decision.lost = [slot for slot in seen.slots if slot.id in lost and not slot.dismissed]
    # Of a slot that is not there any more nobody knows: its rental was begun before it went.
    wanted = {slot.id for slot in seen.slots if not slot.dismissed} - lost
    unwanted = {each.label: Why.DISMISSED for each in seen.rentals if each.slot_id not in wanted}
    unwanted |= dict.fromkeys(_losers(seen.rentals), Why.LOST_RACE)
    unwanted |= {each.label: Why.DAY_CAP for each in too_dear(seen.caps, seen.rentals, seen.spent_today_usd)}
    for rental in seen.rentals:
        if rental.label not in seen.renting:
            _judge(seen, decision, rental, shown.get(rental.label), unwanted.get(rental.label))
    _fill(seen, decision, wanted)
    _race(seen, decision, wanted)
    return decision


def _shown(seen: Situation, decision: Decision) -> Mapping[str, Machine]:
    """The machine of each rental, by its label. Whatever is nobody's is an orphan."""
    if seen.listing is None:
        return {}
    by_instance = {each.instance: each.label for each in seen.rentals if each.instance is not None}
    # A row is there before its rental: whatever may be in flight has one.
    wanted = {each.label for each in seen.rentals if each.instance is None}
    shown: dict[str, Machine] = {}
    for machine in seen.listing.machines:
        if (label := by_instance.get(machine.id)) is not None:
            shown[label] = machine
        elif machine.label in wanted and machine.label not in shown:
            shown[machine.label] = machine
        else:
            decision.orphans.append(machine)
    return shown


def _losers(rentals: Sequence[Rental]) -> set[str]:
    """Labels of all but one for each slot of which one is about to join: Ray must not see two nodes of one name."""
    running = [each for each in rentals if State.LOADING.place <= each.state.place <= State.BUSY.place]
    # Who has come furthest, or did so first.
    running.sort(key=lambda each: (-each.state.place, each.since, each.label))
    first: dict[str, Rental] = {}
    for each in running:
        first.setdefault(each.slot_id, each)
    return {
        each.label
        for each in running
        if (winner := first[each.slot_id]) is not each and winner.state.place >= State.JOINING.place
    }


def _judge(seen: Situation, decision: Decision, rental: Rental, machine: Machine | None, unwanted: Why | None) -> None:
    if rental.instance is None:
        if machine is None:
            if rental.why is not None or _missing_s(seen, rental.reserved_at) > seen.limits.unclear_s:
                decision.closings.append(replace(rental, why=rental.why or Why.NEVER_SEEN))
            return
        agreed, rental = rental, found(rental, machine, seen.now)
        decision.moves.append(Move(rental))
        # The answer that would have been looked at was lost.
        if fault := misfit(agreed, machine):
            decision.ends.append(End(rental, wrong_terms(rental), fault))
            return
    if rental.state is State.ENDING:
        _judge_ending(seen, decision, rental, machine)
    elif (end := _fault(seen, rental, machine)) is not None:
        decision.ends.append(end)
    elif unwanted is not None:
        decision.ends.append(End(rental, unwanted))
    elif rental.state is State.LOADING and machine is not None and machine.status is Status.RUNNING:
        decision.moves.append(Move(*moved(rental, State.BOOTING, seen.now)))


def found(rental: Rental, machine: Machine, now: datetime) -> Rental:
    """It is known now what was rented for it."""
    begun = machine.begun_at or now
    # Other people's clocks: it did not begin before we asked for it.
    begun = min(max(begun, rental.reserved_at), now)
    terms = rental.terms
    if machine.usd_per_hour is not None:
        gpu = max(0.0, machine.usd_per_hour - terms.storage_usd_per_hour)
        terms = replace(terms, gpu_usd_per_hour=gpu)
    rental, _ = moved(rental, State.LOADING, begun)
    return replace(rental, instance=machine.id, begun_at=begun, terms=terms, down_bytes=rental.image_bytes)


def misfit(agreed: Rental, machine: Machine) -> str:
    """What is not as it was agreed on; empty if nothing is."""
    if machine.bid is not None and machine.bid is not agreed.bid:
        return "it is a bid" if machine.bid else "it is on demand where a bid was made"
    most = agreed.terms.usd_per_hour
    if machine.usd_per_hour is not None and machine.usd_per_hour > most * _ROUNDING:
        return f"it costs {machine.usd_per_hour:.4f} dollars per hour where {most:.4f} were agreed"
    return ""


def wrong_terms(rental: Rental) -> Why:
    """What that is called: with a bid it is most often the bid's fault, and not the machine's."""
    return Why.NO_BID if rental.bid else Why.WRONG_TERMS


def _judge_ending(seen: Situation, decision: Decision, rental: Rental, machine: Machine | None) -> None:
    why, listing = rental.why or Why.DISMISSED, seen.listing
    if rental.destroyed_at is None:
        decision.ends.append(End(rental, why, rental.detail))
    elif listing is not None and listing.asked_at > rental.destroyed_at:
        if machine is not None:
            # It was accepted, and did not happen: it costs on.
            decision.ends.append(End(replace(rental, destroyed_at=None), why, rental.detail))
        elif _missing_s(seen, rental.begun_at or rental.reserved_at) > seen.limits.missing_s:
            decision.closings.append(rental)


def _fault(seen: Situation, rental: Rental, machine: Machine | None) -> End | None:
    limits, label = seen.limits, rental.label
    report = seen.reports.get(label)
    if report is not None and report.fault:
        why = Why.WEIGHTS if report.fault.startswith(WEIGHTS_FAULT) else Why.FAILED
        return End(rental, why, report.fault)
    if machine is not None and machine.status in _ENDS:
        return End(rental, _ENDS[machine.status], machine.detail)
    # One list without it may be a faulty one, however long ago the last one was.
    if label in seen.missed and _missing_s(seen, seen.missed[label]) > limits.missing_s:
        return End(rental, Why.GONE)
    if report is not None and (what := _too_much(rental, report, seen.now)):
        return End(rental, Why.TRAFFIC, what)
    spent_s = (seen.now - rental.since).total_seconds()
    limit_s = step_s(rental)
    if limit_s is not None:
        if spent_s > limit_s:
            return End(rental, Why.STUCK, f"{rental.state.value} for more than {limit_s:.0f} s")
        if report is not None and report.left_s is not None and report.state is rental.state:
            whole_s = (report.at - rental.since).total_seconds() + report.left_s
            if whole_s > limit_s:
                return End(rental, Why.TOO_SLOW, f"{rental.state.value} would take {whole_s:.0f} s")
    if report is not None and (silent_s := (seen.now - report.at).total_seconds()) > limits.silence_s:
        return End(rental, Why.SILENT, f"nothing for {silent_s:.0f} s")
    return None


def _too_much(rental: Rental, report: Report, now: datetime) -> str:
    """What it has fetched or sent beyond all measure; empty if it has not."""
    most_down, most_up = most_traffic(rental, now)
    if (down := rental.image_bytes + report.down_bytes) > most_down:
        return f"{down / 1e9:.0f} GB in"
    return f"{report.up_bytes / 1e9:.0f} GB out" if report.up_bytes > most_up else ""


def _missing_s(seen: Situation, since: datetime) -> float:
    """Seconds from then to the list that does not show it; less than nothing without a list."""
    return -1.0 if seen.listing is None else (seen.listing.asked_at - since).total_seconds()


def _fill(seen: Situation, decision: Decision, wanted: set[str]) -> None:
    held = {each.slot_id for each in seen.rentals if each.holds_slot}
    begun = len(seen.begun)
    starting = Counter(each.node_type for each in seen.rentals if each.holds_slot and each.worked_at is None)
    for slot in seen.slots:
        if slot.id in held or slot.id not in wanted or slot.id in seen.begun:
            continue
        breaker = seen.breakers.get(slot.node_type, Breaker())
        if (closed := seen.closed.get(slot.node_type)) is not None:
            decision.waits[slot.id] = closed
        elif breaker.careful(seen.limits) and starting[slot.node_type]:
            decision.waits[slot.id] = Wait(Reason.FAILURES, f"{breaker.failures} in a row; one is tried")
        elif slot.waiting is not None and slot.waiting.until is not None and slot.waiting.until > seen.now:
            decision.waits[slot.id] = slot.waiting
        elif begun < seen.limits.renting:
            decision.fills.append(slot)
            starting[slot.node_type] += 1
            begun += 1


def _race(seen: Situation, decision: Decision, wanted: set[str]) -> None:
    """A second one beside one that starts: of types that have no trouble, and no slot without a machine."""
    held = Counter(each.slot_id for each in seen.rentals if each.holds_slot)
    slots = {slot.id: slot for slot in seen.slots if slot.id in wanted}
    troubled = {slot.node_type for slot in slots.values() if not held[slot.id]}
    troubled |= seen.closed.keys() | {name for name, breaker in seen.breakers.items() if breaker.failures}
    left = seen.limits.renting - len(seen.begun) - len(decision.fills)
    for rental in seen.rentals:
        slot = slots.get(rental.slot_id)
        if slot is None or slot.id in seen.begun or held[slot.id] != 1 or rental.node_type in troubled:
            continue
        if left > 0 and rental.label in seen.races and rental.state.place < State.JOINING.place:
            decision.races.append((slot, rental))
            left -= 1
