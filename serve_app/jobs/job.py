"""The job: a frozen snapshot of one row."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import uuid_utils

from deployments.contract import Lease


class Status(StrEnum):
    """Where a job is in its life."""

    #: Opened by a presigned upload; waits for its ``generate``.
    UPLOADING = "uploading"
    #: Accepted. Inputs are being fetched, or it waits for a GPU.
    QUEUED = "queued"
    #: A replica works on it.
    PROCESSING = "processing"
    #: The mp4 can be downloaded.
    COMPLETED = "completed"
    #: Ended without a video; ``error_code`` says why.
    FAILED = "failed"
    #: The client did not want it any more.
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})

#: The table's word for a ``queued`` job that waits for the video of another: it is in no line, no GPU is wanted for it
#: and no deadline runs. Its client sees it as ``queued``; ``awaits`` says for whom.
AWAITING = "awaiting"
#: How a source begins that is a job's video.
OF_JOB = "job:"


def chained(sources: Mapping[str, str]) -> Mapping[str, str]:
    """Of the sources of a job those that are other jobs' videos: their ids, by input name."""
    return {name: source.removeprefix(OF_JOB) for name, source in sources.items() if source.startswith(OF_JOB)}


def new_id() -> str:
    """Of a job that no client has chosen one for: UUIDv7."""
    return str(uuid_utils.uuid7())


def new_nonce() -> str:
    """See ``storage/keys.py``."""
    return secrets.token_hex(8)


def folder_of(job_id: str, nonce: str) -> str:
    """Where the media of a job lies in the store: see ``storage/keys.py``."""
    return f"{job_id}/{nonce}" if nonce else job_id


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What a client asked for."""

    model: str
    params: Mapping[str, Any]
    #: Which of the model's deployments is to make it; empty: the first.
    deployment: str = ""
    #: What decides that: see ``ModelSpec.variant`` and ``ModelSpec.size``. Not kept, since both follow of ``params``.
    variant: str = ""
    size: int = 1
    #: Of a job that was not opened for uploads before.
    id: str = field(default_factory=new_id)
    nonce: str = field(default_factory=new_nonce)
    #: The key that asked; empty: the environment's ``API_KEY``.
    key_id: str = ""
    #: URL by input name, or ``job:<id>`` of the job whose video it is.
    sources: Mapping[str, str] = field(default_factory=dict)
    #: Storage key by input name, for inputs that were uploaded.
    uploads: Mapping[str, str] = field(default_factory=dict)
    user_id: str | None = None
    webhook_url: str | None = None
    request_id: str = ""
    priority: int = 0
    #: See ``ModelSpec.effort``.
    effort: float = 1.0
    #: Seconds from now in which the job has to start.
    expires_after: float | None = None
    #: Seconds that a run may take; None: as many as the model gives it.
    timeout_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    #: The job that this one is asked for in place of.
    retry_of: str | None = None

    @property
    def folder(self) -> str:
        return folder_of(self.id, self.nonce)

    @property
    def owner(self) -> str:
        """As :attr:`Job.owner`."""
        return f"{self.key_id}/{self.user_id or ''}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of ``jobs`` as it was when read."""

    id: str
    nonce: str
    #: Empty as long as nobody has said, which is while it is ``uploading``.
    model: str
    #: Which of the model's deployments is to make it: in whose line it is. Empty as above.
    deployment: str
    status: Status
    stage: str
    #: 0 to 100, never goes back.
    progress: float
    priority: int
    params: Mapping[str, Any]
    #: See ``ModelSpec.effort``.
    effort: float
    sources: Mapping[str, str]
    uploads: Mapping[str, str]
    #: The jobs for whose videos it waits; None: for none (any more).
    awaits: Sequence[str] | None
    #: As intake stored them (:class:`~serve_app.intake.inputs.StoredInput` by name); None until then. Not parsed here:
    #: a row that another version wrote must not keep anybody from reading the rows beside it.
    inputs: Mapping[str, Any] | None
    #: The key that asked; empty: the environment's ``API_KEY``.
    key_id: str
    user_id: str | None
    #: With whom others share fairly: ``<key_id>/<user_id>``.
    owner: str
    webhook_url: str | None
    request_id: str
    #: How many times a replica started on it.
    attempt: int
    #: How many of those ended by a transient fault.
    faults: int
    #: Of each attempt that failed: ``{attempt, code, message}``.
    fault_log: Sequence[Mapping[str, Any]]
    #: Whether its next attempt has a replica for itself.
    alone: bool
    lease_token: str | None
    cancel_requested_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expires_at: datetime | None
    #: Seconds that each attempt has to start.
    expires_after: float | None
    #: Seconds that the client gives a run; None: as many as the model gives it.
    timeout_s: float | None
    #: The client's own; None: nothing.
    metadata: Mapping[str, str] | None
    #: The job that this one was asked for in place of. It may be gone.
    retry_of: str | None
    #: The report of a finished video that could not be verified yet.
    outcome: Mapping[str, Any] | None
    output_key: str | None
    #: Of its first frame, where there is one.
    poster_key: str | None
    #: Where the video is when a worker outside the cluster made it.
    result_url: str | None
    media: Mapping[str, Any] | None
    timings: Mapping[str, float]
    notes: Mapping[str, Any]
    error_code: str | None
    error_message: str | None
    #: Grows with each change that a client can see.
    version: int

    @property
    def folder(self) -> str:
        """Where its media lies in the store."""
        return folder_of(self.id, self.nonce)

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> "Job":
        values: dict[str, Any] = {name: row[name] for name in cls.__dataclass_fields__}
        values["status"] = Status.QUEUED if values["status"] == AWAITING else Status(values["status"])
        for name in ("model", "deployment"):
            values[name] = values[name] or ""
        for name in ("timings", "notes"):
            # Only ever shown or added up.
            values[name] = values[name] if isinstance(values[name], dict) else {}
        return cls(**values)


@dataclass(frozen=True)
class Claim:
    """A job, and the lease under which it may be worked on."""

    job: Job
    lease: Lease

    @classmethod
    def of(cls, job: Job) -> "Claim":
        """Of a job that was leased just now: the attempt is the one that would begin with it."""
        assert job.lease_token is not None
        lease = Lease(job_id=job.id, token=job.lease_token, attempt=job.attempt + 1, request_id=job.request_id)
        return cls(job, lease)
