"""Who calls: the key that a request has shown, as it was when the request came."""

from dataclasses import dataclass, field
from enum import StrEnum


class Scope(StrEnum):
    """What a key may be used for."""

    #: Ask for videos: upload, submit, retry, cancel, delete, webhook endpoints.
    GENERATE = "generate"
    #: Look: jobs, their events and their videos.
    READ = "read"
    #: Everything, for every key: all jobs, and the keys themselves.
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one key may use. None: as much as there is."""

    requests_per_minute: int | None = None
    running_jobs: int | None = None
    queued_jobs: int | None = None
    usd_per_day: float | None = None


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A key that is good at this moment."""

    #: ``key_…``; empty for the ``API_KEY`` of the environment.
    key_id: str
    name: str
    scopes: frozenset[Scope]
    limits: Limits = field(default_factory=Limits)

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def sees(self) -> str | None:
        """The key whose jobs this one may see and touch; None: those of all."""
        return None if Scope.ADMIN in self.scopes else self.key_id


#: The environment's ``API_KEY``: with it the first keys are made.
BOOTSTRAP = Caller(key_id="", name="API_KEY", scopes=frozenset(Scope))
