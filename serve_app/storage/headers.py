"""What a reader of an object is told besides its bytes, by both stores alike."""

from urllib.parse import quote

from serve_app.storage import keys


def caching(key: str, life_s: int) -> str:
    """``Cache-Control`` of an object that is read by a link which lives for ``life_s`` seconds more.

    Who has the link has the permission, and no longer than that.
    """
    return f"private, max-age={max(life_s, 0)}, immutable" if keys.immutable(key) else "private, no-cache"


def attachment(filename: str) -> str:
    """``Content-Disposition`` that saves under ``filename`` (RFC 6266 and 8187), safe for any text."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in filename)
    if plain == filename:
        return f'attachment; filename="{plain}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
