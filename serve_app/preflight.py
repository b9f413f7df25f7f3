"""Cheap looks before anything starts: what cannot work is said within seconds, naming the variable and the cause.

Nothing here needs torch. What is wrong with a URL or a path is told without the password in it.
"""

import os
import threading
from collections.abc import Mapping

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from deployments.registry import MODELS
from serve_app.settings import ConfigurationError, Settings

#: Seconds for a database to answer, and beyond that for a resolver which knows no time limit of its own.
CONNECT_S, RESOLVE_S = 5, 3

_MALFORMED = (
    "is no URL that PostgreSQL understands (postgresql://user:password@host:5432/name); "
    "in a user name or password % @ : / ? # have to be written as %25 %40 %3A %2F %3F %23"
)


def require(settings: Settings) -> None:
    """What a whole service on this machine needs. Raises ConfigurationError, which names everything at fault."""
    faults = weights_faults(os.environ)
    if settings.database_url and (fault := database_fault(settings.database_url)):
        faults.append(fault)
    if faults:
        raise ConfigurationError("; ".join(faults))


def database_fault(url: str, connect_s: int = CONNECT_S, resolve_s: float = RESOLVE_S) -> str | None:
    """Why there is no connection to be had at ``url`` (``postgresql+psycopg://…``), or None if there is."""
    if fault := url_fault(url):
        return fault
    target = _libpq(url)
    found: list[str | None] = []
    # Not to be waited for at the end of the process: a name server that is away can hold it for a minute.
    asking = threading.Thread(target=lambda: found.append(_connect(target, connect_s)), daemon=True)
    asking.start()
    asking.join(connect_s + resolve_s)
    cause = found[0] if found else f"no answer within {connect_s + resolve_s:g} s"
    return f"DATABASE_URL: {cause}" if cause else None


def url_fault(url: str) -> str | None:
    """What is wrong with the URL itself: SQLAlchemy and libpq have to understand it, and the same by it."""
    try:
        ours, theirs = make_url(url), conninfo_to_dict(_libpq(url))
    except (ArgumentError, ValueError, psycopg.Error):
        # Their own words would quote parts of the password.
        return f"DATABASE_URL: {_MALFORMED}"
    same = (ours.username, ours.password or None) == (theirs.get("user"), theirs.get("password") or None)
    # An @ in the password ends it too early, and the rest would be shown as part of the host.
    return None if same and "@" not in str(theirs.get("host", "")) else f"DATABASE_URL: {_MALFORMED}"


def weights_faults(environment: Mapping[str, str]) -> list[str]:
    """What is wrong with the paths that ``environment`` names, by each model's own look."""
    return [fault for spec in MODELS.values() for fault in spec.weights_faults(environment)]


def _libpq(url: str) -> str:
    return url.replace("+psycopg", "", 1)


def _connect(target: str, timeout_s: int) -> str | None:
    try:
        psycopg.connect(target, connect_timeout=timeout_s).close()
    except (psycopg.Error, OSError, ValueError) as error:
        return next(iter(str(error).splitlines()), "") or type(error).__name__
    return None
