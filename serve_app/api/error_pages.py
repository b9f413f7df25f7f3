"""``/errors``: what the ``type`` of a problem leads to. HTML for people, JSON for programs. Public, and cheap."""

import html
import re
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import TypeAdapter

from serve_app.api.codes import Explanation, Meaning, explanations, title
from serve_app.api.errors import InvalidRequest, NotFound
from serve_app.api.problems import documented
from serve_app.services import ServicesOf

router = APIRouter(prefix="/errors", tags=["errors"])

_HEADERS = {
    # They change with the version of the service.
    "cache-control": "public, max-age=3600",
    "vary": "accept",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}
_PAGE: dict[int | str, dict[str, Any]] = {
    200: {"description": "In HTML where `Accept` prefers it.", "content": {"text/html": {"schema": {"type": "string"}}}}
}
CodePath = Annotated[str, Path(description="`code` of a problem; `error_code` or `wait_code` of a job.")]
_ALL = TypeAdapter(list[Explanation])


@router.get(
    "", operation_id="list_errors", summary="List codes of errors", response_model=list[Explanation], responses=_PAGE
)
async def list_errors(request: Request, services: ServicesOf) -> Response:
    """Every code of errors, failed jobs and jobs that wait."""
    found = list(explanations(services.settings.base_url).values())
    if _wants_html(request.headers.get("accept", "")):
        return HTMLResponse(_list(found), headers=_HEADERS)
    return Response(_ALL.dump_json(found, exclude_none=True), headers=_HEADERS, media_type="application/json")


@router.get(
    "/{code}",
    operation_id="explain_error",
    summary="Explain the code of an error",
    response_model=Explanation,
    responses={**_PAGE, **documented(NotFound, InvalidRequest)},
)
async def explain_error(code: CodePath, request: Request, services: ServicesOf) -> Response:
    """What a code means and what to do about it. The `type` of a problem is the link to this."""
    found = explanations(services.settings.base_url).get(code)
    if found is None:
        raise NotFound("There is no such code. `/errors` has them all.")
    if _wants_html(request.headers.get("accept", "")):
        return HTMLResponse(_one(found), headers=_HEADERS)
    return Response(found.model_dump_json(exclude_none=True), headers=_HEADERS, media_type="application/json")


def _wants_html(accept: str) -> bool:
    """Whether ``text/html`` is asked for by name, and JSON not rather."""
    wishes = dict(_wish(member) for member in accept.split(","))
    return wishes.get("text/html", 0.0) > max(wishes.get("application/json", 0.0), wishes.get("application/*", 0.0))


def _wish(member: str) -> tuple[str, float]:
    kind, *parameters = (part.strip().lower() for part in member.split(";"))
    weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
    return kind, float(weight) if re.fullmatch(r"[01](\.[0-9]{0,3})?", weight) else 0.0


_STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } dt { margin-top: 1rem; }
code { background: #8882; padding: .1em .3em; border-radius: .2em; }
:root { color-scheme: light dark; }"""


def _document(heading: str, parts: Iterable[str]) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(heading)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>"
    )


def _one(found: Explanation) -> str:
    parts = [f"<h1><code>{html.escape(found.code)}</code></h1>"]
    parts += [f"<h2>{html.escape(title(meaning))}</h2>{_meaning(meaning)}" for meaning in found.meanings]
    return _document(found.code, [*parts, '<p><a href="/errors">All codes</a></p>'])


def _meaning(meaning: Meaning) -> str:
    parts = [f"<p>{_text(meaning.detail)}</p>"]
    if meaning.remedy:
        parts.append(f"<p>{_text(meaning.remedy)}</p>")
    if meaning.retried:
        parts.append("<p>The service has made further attempts by itself before the job failed.</p>")
    return "".join(parts)


def _list(found: Iterable[Explanation]) -> str:
    entries = [
        f'<dt><a href="/errors/{each.code}"><code>{each.code}</code></a></dt>'
        + "".join(f"<dd>{html.escape(title(meaning))}: {_text(meaning.detail)}</dd>" for meaning in each.meanings)
        for each in found
    ]
    return _document("Error codes", ["<h1>Error codes</h1><dl>", *entries, "</dl>"])


def _text(said: str) -> str:
    """Of our own words: what is between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(said))
