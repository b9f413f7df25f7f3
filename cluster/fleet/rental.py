"""A machine that is rented for a slot: what state it is in, and why it ended."""

from dataclasses import dataclass
from datetime import datetime

from cluster.explained import Explained
from cluster.fleet.terms import Terms
from cluster.fleet.words import written


class State(Explained):
    """In the order in which a rental goes through them; only between the two that work does it go back and forth."""

    RENTING = "renting", "It is being rented, or whether it was is not known yet."
    LOADING = "loading", "Its host pulls the image."
    BOOTING = "booting", "Its container runs, and has not been heard of."
    INSTALLING = "installing", "It installs what the image lacks."
    WEIGHTS = "weights", "It fetches weights."
    JOINING = "joining", "It joins the cluster."
    IDLE = "idle", "It waits for work."
    BUSY = "busy", "It works."
    ENDING = "ending", "It is being given back."
    ENDED = "ended", "It is given back: it is in the provider's list no more."

    @property
    def place(self) -> int:
        """In that order. Members are texts, whose own order is the alphabet's."""
        return _PLACES[self]

    @property
    def works(self) -> bool:
        return self in (State.IDLE, State.BUSY)

    @property
    def comes(self) -> bool:
        """It is rented, and has not worked yet."""
        return State.LOADING.place <= self.place <= State.JOINING.place

    def may_become(self, other: "State") -> bool:
        """Whether a node in this state may say that it is in the other one."""
        if not State.LOADING.place <= self.place <= State.BUSY.place:
            return False
        if not State.INSTALLING.place <= other.place <= State.BUSY.place:
            return False
        return self.place < other.place or (self is State.BUSY and other is State.IDLE)


_PLACES = {state: place for place, state in enumerate(State)}


class Why(Explained):
    """Why a rental ended."""

    DISMISSED = "dismissed", "Nobody wished for it any more."
    LOST_RACE = "lost_race", "Two were started for one node, and the other one was ready first."
    DAY_CAP = "day_cap", "With it, the day would have cost more than it may."
    NOT_RENTED = "not_rented", "The offer was gone or refused; nothing was paid."
    NEVER_SEEN = "never_seen", "Whether it was rented was not clear, and it has never shown up."
    WRONG_TERMS = "wrong_terms", "It was not what was asked for."
    NO_BID = "no_bid", "A bid was made for it, and was not taken as one, or not at its price."
    STUCK = "stuck", "It took longer for a step of its start than that may take."
    TOO_SLOW = "too_slow", "At its measured rate it would have taken too long for a step of its start."
    BROKEN = "broken", "Its container can't be started."
    EXITED = "exited", "Its container has ended."
    OFFLINE = "offline", "Its host is gone."
    OUTBID = "outbid", "Somebody has bid more, and it was stopped."
    FAILED = "failed", "It said itself that it can't go on."
    WEIGHTS = "weights", "It said that its weights can't be fetched, as no other node of its type could."
    TRAFFIC = "traffic", "It said that it has fetched or sent far more than its work can be."
    SILENT = "silent", "It was not heard of for too long."
    GONE = "gone", "It is in the provider's list no more, and we have not given it back."
    ORPHAN = "orphan", "It has our label, and nobody had rented it as far as the books know."


@dataclass(frozen=True, kw_only=True)
class Rental:
    """One row of the books. It is there before anything is rented: that is what reserves its cost."""

    #: Ours alone, and for ever: how it is found again when no answer comes.
    label: str
    #: Empty for an orphan, as is the type.
    slot_id: str
    node_type: str
    state: State
    #: Since when it is in that state.
    since: datetime
    reserved_at: datetime
    #: The provider's names of what is rented and of the machine.
    offer: str
    host: str
    terms: Terms
    #: Somebody may bid more at any time.
    bid: bool = False
    #: Expected: seconds to its first job, and bytes that it fetches before, the image's among them.
    start_s: float = 0.0
    start_bytes: float = 0.0
    image_bytes: float = 0.0
    #: Of its machine, as offered; 0 where that is not known.
    line_mbps: float = 0.0
    #: The provider's id; None until it is known.
    instance: str | None = None
    #: What the mesh's door knows it by; None: nothing to shut.
    door_key: str | None = None
    #: From when on it costs, and when the provider accepted its end.
    begun_at: datetime | None = None
    destroyed_at: datetime | None = None
    ended_at: datetime | None = None
    #: When it could work for the first time.
    worked_at: datetime | None = None
    why: Why | None = None
    detail: str = ""
    #: So far.
    down_bytes: float = 0.0
    up_bytes: float = 0.0
    #: Where the ledger's open stretch begins: moment, and bytes until then.
    stretch_at: datetime
    stretch_down: float = 0.0
    stretch_up: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", written(self.detail))

    def fetch_s(self, size_bytes: float) -> float:
        """At its line's rate; endless where that is not known."""
        return 8 * size_bytes / (self.line_mbps * 1e6) if self.line_mbps else float("inf")

    @property
    def holds_slot(self) -> bool:
        """No other may be rented for its slot. What has turned up again has none any more."""
        return self.state is not State.ENDED and self.destroyed_at is None and self.why is not Why.ORPHAN

    @property
    def lost(self) -> bool:
        """It could work, and is going; whoever knows its slot as a node has to hear of it."""
        others = (Why.ORPHAN, Why.LOST_RACE)
        return self.worked_at is not None and self.state is State.ENDING and self.why not in others
