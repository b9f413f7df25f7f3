"""Bodies of requests and responses about API keys."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field

from serve_app.access.caller import Caller, Limits, Scope
from serve_app.access.key_store import Issued, Key
from serve_app.api.body import RequestBody
from serve_app.jobs.quota import Use

#: Longest that a rotated key's last secret stays good.
MOST_OVERLAP_S = 7 * 24 * 3600
_LONGEST_S = 10 * 365 * 24 * 3600
#: More than any of these needs, and no more than an integer of PostgreSQL.
_MANY = 1_000_000_000

ExpiresIn = Annotated[float | None, Field(gt=0, le=_LONGEST_S)]


def _with_repetitions(schema: dict[str, Any]) -> None:
    schema.pop("uniqueItems", None)


class KeyLimits(RequestBody):
    """What one key may use. What is left out has no limit."""

    requests_per_minute: int | None = Field(None, ge=1, le=1_000_000, description="More are refused: `rate_limited`.")
    running_jobs: int | None = Field(None, ge=1, le=_MANY, description="More wait in the queue.")
    queued_jobs: int | None = Field(
        None, ge=1, le=_MANY, description="Jobs that wait or are open for uploads; more are refused: `queue_full`."
    )
    usd_per_day: float | None = Field(
        None,
        gt=0,
        le=_MANY,
        allow_inf_nan=False,
        description="Dollars for machines in the last 24 hours, and what its unfinished jobs are expected to cost. "
        "Jobs beyond it are refused: `budget_reached`.",
    )

    @classmethod
    def of(cls, limits: Limits) -> "KeyLimits":
        return cls(
            requests_per_minute=limits.requests_per_minute,
            running_jobs=limits.running_jobs,
            queued_jobs=limits.queued_jobs,
            usd_per_day=limits.usd_per_day,
        )

    def limits(self) -> Limits:
        return Limits(**self.model_dump())


class NewKey(RequestBody):
    """Which key?"""

    name: str = Field(min_length=1, max_length=100, description="For people, e.g. whose it is.")
    # JSON has neither sets nor names of ours: here, a list of texts is no mistake.
    scopes: frozenset[Annotated[Scope, Field(strict=False)]] = Field(
        frozenset({Scope.GENERATE, Scope.READ}),
        strict=False,
        # One that is named twice is none the less one.
        json_schema_extra=_with_repetitions,
        min_length=1,
        description="`generate`: ask for videos, cancel and delete. `read`: look at its jobs and fetch its videos. "
        "`admin`: everything, for every key.",
    )
    expires_in: ExpiresIn = Field(None, description="Seconds from now; left out: it does not expire.")
    limits: KeyLimits = Field(default_factory=KeyLimits)


class KeyRotation(RequestBody):
    """How a key changes its secret."""

    overlap_s: float = Field(
        0, ge=0, le=MOST_OVERLAP_S, description="Seconds for which the last secret stays good beside the new one."
    )
    expires_in: ExpiresIn = Field(None, description="Seconds from now; left out: it expires when it did.")


class KeyView(BaseModel):
    """A key. Its secret is shown once, when it is made."""

    key_id: str
    name: str
    hint: str = Field(description="How the secret begins.")
    scopes: list[Scope]
    limits: KeyLimits
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = Field(None, description="To the minute.")
    previous_until: datetime | None = Field(None, description="Until when the secret before this one is good, too.")

    @classmethod
    def of(cls, key: Key) -> "KeyView":
        return cls(**_fields(key))


class IssuedKey(KeyView):
    """A key with its secret, which is shown this once."""

    secret: str = Field(description="`va_…`: what is shown as `Authorization: Bearer …`. Nobody can look it up later.")

    @classmethod
    def issued(cls, issued: Issued) -> "IssuedKey":
        return cls(**_fields(issued.key), secret=issued.secret)


class KeyPage(BaseModel):
    """Newest first. Ask for the next page with ``after=<last_id>``."""

    data: list[KeyView]
    last_id: str | None = None
    has_more: bool


class KeyUse(BaseModel):
    """What the key that was shown may do, and what it uses of that."""

    key_id: str = Field(description="Empty for the `API_KEY` of the environment.")
    name: str
    scopes: list[Scope]
    limits: KeyLimits
    running_jobs: int | None = Field(None, description="Now. Absent, like the next two, for the `API_KEY`.")
    queued_jobs: int | None = Field(None, description="Now; with those that are open for uploads.")
    usd_of_24h: float | None = Field(
        None, description="Dollars that machines have cost for it in the last 24 hours, by the books so far."
    )

    @classmethod
    def of(cls, caller: Caller, use: Use | None) -> "KeyUse":
        return cls(
            key_id=caller.key_id,
            name=caller.name,
            scopes=sorted(caller.scopes),
            limits=KeyLimits.of(caller.limits),
            running_jobs=use and use.running,
            queued_jobs=use and use.queued,
            usd_of_24h=use and use.usd,
        )


def _fields(key: Key) -> dict[str, object]:
    return {
        "key_id": key.id,
        "name": key.name,
        "hint": key.hint,
        "scopes": sorted(key.scopes),
        "limits": KeyLimits.of(key.limits),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
        "previous_until": key.previous_until,
    }
