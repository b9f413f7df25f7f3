"""What is asked for when a machine is rented, and Vast's limits on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

MAX_LABEL = 256
MAX_IMAGE = 1024
#: Characters of the arguments and ``onstart`` together.
MAX_COMMAND = 4096
#: Vast says 256, but not of what; one less is right by every reading.
MAX_ENV_VALUE = 255
MAX_ENV_BYTES = 32 * 1024
MIN_DISK_GB = 8.0
#: Dollars per hour that may be bid for a machine.
MIN_BID, MAX_BID = 0.001, 128.0


class BadRequest(ValueError):
    """This can't be rented; the message names the field. Nothing was sent."""


@dataclass(frozen=True, kw_only=True)
class RentRequest:
    """Raises :class:`BadRequest` for what Vast would refuse or, worse, silently not apply."""

    offer_id: int
    image: str
    #: Fixed for the rental's life.
    disk_gb: float
    #: No other request may ever have had it: it tells whether this one succeeded when no answer comes.
    label: str
    #: Dollars per hour in all, storage included, that it may turn out to cost.
    most_usd_per_hour: float
    #: What the image's entry point is called with.
    args: tuple[str, ...] = field(default=(), repr=False)
    #: Run by the container's shell at its start.
    onstart: str = field(default="", repr=False)
    #: Its values are kept out of logs and errors: tokens are among them.
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    #: Dollars per hour for the GPUs; None: on demand, and nobody can bid more.
    bid_usd: float | None = None

    def __post_init__(self) -> None:
        command = sum(map(len, self.args)) + len(self.onstart)
        env_bytes = sum(len(f"{name}={value}".encode()) for name, value in self.env.items())
        long = sorted(name for name, value in self.env.items() if len(value) > MAX_ENV_VALUE)
        faults = {
            f"label: 1 to {MAX_LABEL} characters": not 0 < len(self.label) <= MAX_LABEL,
            f"image: 1 to {MAX_IMAGE} characters": not 0 < len(self.image) <= MAX_IMAGE,
            f"disk_gb: at least {MIN_DISK_GB:g}": not self.disk_gb >= MIN_DISK_GB,
            f"args and onstart: at most {MAX_COMMAND} characters together, not {command}": command > MAX_COMMAND,
            f"env: {', '.join(long)}: at most {MAX_ENV_VALUE} characters": bool(long),
            f"env: at most {MAX_ENV_BYTES} bytes in all, not {env_bytes}": env_bytes > MAX_ENV_BYTES,
            f"bid_usd: {MIN_BID:g} to {MAX_BID:g}": self.bid_usd is not None and not MIN_BID <= self.bid_usd <= MAX_BID,
            "most_usd_per_hour: more than 0": not self.most_usd_per_hour > 0,
        }
        if found := [fault for fault, there in faults.items() if there]:
            raise BadRequest("; ".join(found))

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may repeat."""
        return tuple(self.env.values())

    def body(self) -> dict[str, Any]:
        """As Vast wants it. The environment is an object: a string of docker's flags would silently not apply."""
        body: dict[str, Any] = {
            "client_id": "me",
            "image": self.image,
            "disk": self.disk_gb,
            "label": self.label,
            "env": dict(self.env),
            # Keeps the image's entry point. Others put an SSH server in its place.
            "runtype": "args",
            "args": list(self.args),
            # Fail, instead of leaving a stopped instance that may start, and cost, at any time later.
            "cancel_unavail": True,
        }
        if self.onstart:
            body["onstart"] = self.onstart
        if self.bid_usd is not None:
            body["price"] = self.bid_usd
        return body
