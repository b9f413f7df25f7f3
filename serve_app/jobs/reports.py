"""What a worker says, cut down to what may be written.

Codes, stages and names of times become labels of metrics; what JSON cannot hold would keep the job from ever ending.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import structlog
from pydantic import ValidationError

from deployments.contract import TIMED, Failure, FileFacts, MediaFacts, Outcome, Progress, Report, Started, Stopped
from deployments.failure_code import FailureCode
from deployments.stage import Stage

log = structlog.get_logger()

#: Characters of JSON.
_MAX_NOTES = 16_384
#: Characters: Ray's ids of cloud instances are UUIDs.
_MAX_NODE = 100


def vetted(report: Report) -> Report:
    """The report itself, or the part of it that is well formed."""
    match report:
        case Started():
            return report.model_copy(update={"node": _node(report)})
        case Progress():
            return report.model_copy(update={"stage": Stage(report.stage)})
        case Failure():
            return report.model_copy(update={"code": FailureCode(report.code), "timings": _timings(report.timings)})
        case Outcome():
            known = {"notes": _notes(report), "timings": _timings(report.timings), "poster": _poster(report)}
            return report.model_copy(update={**known, "media": _media(report)})
        case Stopped():
            return report.model_copy(update={"timings": _timings(report.timings)})


def _timings(timings: Mapping[str, float]) -> dict[str, float]:
    return {name: timings[name] for name in TIMED if math.isfinite(timings.get(name, math.nan)) and timings[name] >= 0}


def _node(report: Started) -> str:
    # A replica of the version before does not say.
    node: str = getattr(report, "node", "")
    if len(node) <= _MAX_NODE and "\0" not in node and _is_utf8(node):
        return node
    log.error("node_dropped", job_id=report.lease.job_id)
    return ""


def _poster(report: Outcome) -> FileFacts | None:
    # A replica of the version before does not say.
    poster: FileFacts | None = getattr(report, "poster", None)
    return poster


def _media(report: Outcome) -> MediaFacts | None:
    try:
        # What is unpickled was never validated. Fields that a newer worker knows are none of ours.
        said = vars(report.media)
        return MediaFacts.model_validate({name: said[name] for name in MediaFacts.model_fields})
    except (KeyError, TypeError, ValidationError):
        log.error("media_dropped", job_id=report.lease.job_id)
        return None


def _notes(report: Outcome) -> dict[str, Any]:
    try:
        # PostgreSQL takes neither NaN nor NUL, nor half of a pair of surrogates.
        written = json.dumps(report.notes, allow_nan=False)
        whole = _is_utf8(json.dumps(report.notes, ensure_ascii=False))
        if len(written) <= _MAX_NOTES and "\\u0000" not in written and whole:
            return report.notes
    except (TypeError, ValueError, RecursionError):
        pass
    log.error("notes_dropped", job_id=report.lease.job_id)
    return {}


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
