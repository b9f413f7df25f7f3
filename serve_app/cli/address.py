"""Where the API is, and by which key, as options, the environment, ``.env`` and the service on this machine say."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def address(url: str, key: str) -> tuple[str, str]:
    """URL and key, each as given, or else the default; there may be no key."""
    found = {name: value for name, value in dotenv_values(".env").items() if value} | dict(os.environ)
    url = url or found.get("VIDEO_API_URL") or f"http://127.0.0.1:{found.get('PORT') or 8000}"
    return url, key or _key_for(url, found)


def _key_for(url: str, found: Mapping[str, str]) -> str:
    key = found.get("VIDEO_API_KEY") or found.get("API_KEY")
    try:
        here = urlsplit(url).hostname in _LOOPBACK
    except ValueError:
        # No address at all, as is said when it is used.
        here = False
    if key or not here:
        return key or ""
    try:
        secrets = json.loads((Path(found.get("VIDEO_API_DATA_DIR") or ".data") / "secrets.json").read_text())
    except (OSError, ValueError):
        return ""
    return str(secrets.get("api_key", ""))
