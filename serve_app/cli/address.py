"""Where the API is, and by which key, as options, the environment, ``.env`` and the service on this machine say."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values

from serve_app.cli.terminal import UsageProblem

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def address(url: str, key: str, env_file: str | None = ".env") -> tuple[str, str]:
    """URL and key, each as given by an option or its variable, or else the default; there may be no key.

    A URL that only ``env_file`` says gets no key of the environment: the folder may be a stranger's.

    Raises:
        UsageProblem: that leaves it without one.
    """
    # As it stands: ``${NAME}`` would put any variable into the URL.
    values = dotenv_values(env_file, interpolate=False) if env_file else {}
    filed = {name: value for name, value in values.items() if value}
    if not url and "VIDEO_API_URL" in filed:
        url = filed["VIDEO_API_URL"]
        if key and key == os.environ.get("VIDEO_API_KEY"):
            key = _key_for(url, filed)
            if not key:
                raise UsageProblem(
                    f"VIDEO_API_URL is set in {env_file}, and VIDEO_API_KEY in the environment: an address of the file"
                    " gets no key but the file's. Set both in one place, or give --url."
                )
        return url, key or _key_for(url, filed)
    found = filed | dict(os.environ)
    url = url or f"http://127.0.0.1:{found.get('PORT') or 8000}"
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
