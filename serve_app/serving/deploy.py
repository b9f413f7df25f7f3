"""What ``serve deploy`` does, and waiting until the applications run."""

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import httpx
import structlog
import yaml

from serve_app.serving.bounded import AsyncBounded
from serve_app.settings import ConfigurationError, Environment

log = structlog.get_logger()

_PATH = "/api/serve/applications/"
#: A dashboard that begins to listen before its Serve module works answers 5xx for a moment.
_AGAIN_S = 0.5
_FAILED = "DEPLOY_FAILED"
#: The line of a traceback that names the exception, and a terminal's colours.
_EXCEPTION, _COLOUR = re.compile(r"^(?:\w+\.)*([A-Z]\w*: .+)", re.MULTILINE), re.compile(r"\x1b\[[0-9;]*m")


def read_config(path: Path) -> dict[str, Any]:
    """A Serve YAML."""
    wanted: dict[str, Any] = yaml.safe_load(path.read_text())
    return wanted


def environment_of(wanted: dict[str, Any]) -> Environment:
    """Which environment the application is for."""
    environment: Environment = wanted["applications"][0].get("args", {}).get("environment", "local")
    return environment


async def deploy(wanted: dict[str, Any], dashboard_url: str, timeout_s: float, token: str = "") -> None:
    """Deploy and wait. ``token`` is that of Ray, where it asks for one.

    Raises:
        ConfigurationError: an application does not come up, or not in time.
    """
    names = [application["name"] for application in wanted["applications"]]
    headers = {"authorization": f"Bearer {token}"} if token else {}
    give_up = time.monotonic() + timeout_s
    sent, seen = False, ""
    async with httpx.AsyncClient(
        base_url=dashboard_url, headers=headers, timeout=30, trust_env=False, transport=AsyncBounded()
    ) as dashboard:
        # However short the time, one look is what the message can be about.
        while not seen or time.monotonic() < give_up:
            try:
                if not sent:
                    answer = await dashboard.put(_PATH, json=wanted)
                    if answer.is_client_error:
                        raise ConfigurationError(f"Serve refused the configuration: {answer.text[:2000]}")
                    answer.raise_for_status()
                    sent = True
                answer = await dashboard.get(_PATH)
                answer.raise_for_status()
            except httpx.HTTPError as error:
                seen = repr(error)
                await asyncio.sleep(_AGAIN_S)
                continue
            found = answer.json()["applications"]
            states = {name: found.get(name, {}).get("status", "absent") for name in names}
            if all(state == "RUNNING" for state in states.values()):
                return
            failed = [_reason(found[name]) for name in names if states[name] == _FAILED]
            if failed:
                raise ConfigurationError(f"the application did not start: {'; '.join(failed)}")
            seen = str(states)
            # Serve offers no event for this; half a second is not felt beside the seconds that replicas take.
            await asyncio.sleep(_AGAIN_S)
    raise ConfigurationError(f"the application did not start in {timeout_s:.0f} s: {seen}")


def cause_of(message: str) -> str:
    """What went wrong, in one line: the last exception of the tracebacks that Serve reports, else its first line."""
    plain = _COLOUR.sub("", message).strip()
    exceptions = _EXCEPTION.findall(plain)
    return str(exceptions[-1]) if exceptions else plain.partition("\n")[0]


def _reason(application: dict[str, Any]) -> str:
    """The application's own message names deployments at most; theirs say why."""
    deployments: dict[str, dict[str, Any]] = application.get("deployments", {})
    failed = [f"{name}: {cause_of(each['message'])}" for name, each in deployments.items() if each["status"] == _FAILED]
    return "; ".join(failed) or cause_of(application["message"])
