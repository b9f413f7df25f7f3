"""Structured logs: one JSON object a line on stderr, where Ray collects it.

Values bound with ``structlog.contextvars`` (``job_id``, ``request_id``) are on every line of that job, in threads too
if they run in a copy of the context.
"""

import logging
import os
import sys

import structlog


def configure(service: str) -> None:
    """Set this process's log format. ``LOG_LEVEL`` (default ``info``) names the least level shown."""
    level = logging.getLevelNamesMapping().get(os.environ.get("LOG_LEVEL", "info").upper(), logging.INFO)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _service(service),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _service(name: str) -> structlog.typing.Processor:
    def add(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["service"] = name
        return event

    return add
