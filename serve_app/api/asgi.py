"""The FastAPI application: routers, errors, CORS, request ids."""

import json
import sys
from collections.abc import Awaitable, Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.types import ASGIApp

from serve_app import __version__
from serve_app.access.key_ring import KeyRing
from serve_app.api import (
    deliveries,
    endpoints,
    error_pages,
    estimate,
    events,
    files,
    generate,
    health,
    jobs,
    keys,
    models,
    presign,
    problems,
    webhook_events,
    wish,
    worker,
)
from serve_app.api.direct import Direct
from serve_app.api.errors import InternalError, Unavailable
from serve_app.api.examples import EXAMPLES
from serve_app.api.gate import Gate
from serve_app.api.idempotency import REPLAYED
from serve_app.api.openai import content, create, unsupported, videos
from serve_app.api.openai import models as openai_models
from serve_app.api.openai.error import OpenAIProblem
from serve_app.api.problem_schemas import Problem
from serve_app.api.request_id import RequestIdMiddleware
from serve_app.services import Services, build_ring

DESCRIPTION = """\
Post an image and a prompt, a prompt alone, or a video and an audio track; get a durable job; download an mp4.

1. `POST /api/v1/generate` with URLs of the inputs, or upload them first: `POST /api/v1/presign/upload`, then PUT.
2. Follow `GET /api/v1/jobs/{job_id}/events`, ask `GET /api/v1/jobs/{job_id}`, or be told at `webhook_url`.
3. Download from `result_url`.

Errors are `application/problem+json` with a stable `code`; their `type` leads to what it means and what to do
(`/errors`).
"""

_TAGS = {
    "generate": "What can be asked for, what it would take, and asking for it.",
    "jobs": "Look at jobs, follow, cancel, retry and delete them.",
    "media": "Files: links to upload and download by, and with a local store what they lead to.",
    "keys": "API keys, their scopes and limits. Making them takes the scope `admin`.",
    "webhooks": "Be told of jobs: endpoints, secrets and what was sent. And where workers outside the cluster report.",
    "operations": "For operators and their monitors. Public.",
    "errors": "What each code means, and what to do. Public.",
    "openai": "OpenAI's protocol of videos, for its clients. The same jobs by other words.",
}

_PARTS = (
    generate, models, estimate, jobs, events, presign, keys, worker, endpoints, deliveries, health, files,
    error_pages, create, videos, content, openai_models, unsupported,
)  # fmt: skip


def application() -> FastAPI:
    """All routes and what is said of them, with nothing behind them."""
    app = FastAPI(
        title="video-api",
        version=__version__,
        description=DESCRIPTION,
        responses=problems.documented(InternalError, Unavailable),
        openapi_tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
        # Made once, see below.
        openapi_url=None,
        # It would lead to whichever host the request names.
        redirect_slashes=False,
    )
    for part in _PARTS:
        app.include_router(part.router)
    app.webhooks.include_router(webhook_events.router)
    return app


def described(app: FastAPI) -> dict[str, Any]:
    """The application in the words of OpenAPI 3.1."""
    schema = app.openapi()
    # Error responses, and what reads its body by itself, refer to them by name.
    schema["components"]["schemas"] |= wish.components()
    for problem in (Problem, OpenAIProblem):
        made = problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schema["components"]["schemas"] |= {**made.pop("$defs", {}), problem.__name__: made}
    for operation in (operation for path in schema["paths"].values() for operation in path.values()):
        for kind, body in operation.get("requestBody", {"content": {}})["content"].items():
            # Not by way of FastAPI, which would drop what is null in them.
            body["examples"] = EXAMPLES.get(kind, {}).get(operation["operationId"], {})
    return schema


def create_asgi(services: Services, ring: KeyRing | None = None) -> ASGIApp:
    """The API over these parts; starts nothing. A ``ring`` that is kept fresh knows of keys that others change."""
    ring = ring or build_ring(services)
    app = application()
    app.state.services = services
    services.feed.show(partial(events.look, services))
    app.state.key_ring = ring
    routers = [part.router for part in _PARTS]
    problems.install(app, services.settings.base_url, routers)
    _publish(app)
    # Around the application and not in it, so that the answers to a crash and of the gate have these headers too.
    open_to_browsers = CORSMiddleware(
        Gate(Direct(app, services), services.settings, ring, routers),
        allow_origins=list(services.settings.cors_origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=[
            "x-request-id",
            # A script that plays a video in parts has to see where it is.
            "accept-ranges",
            "content-range",
            "etag",
            "ratelimit",
            "ratelimit-policy",
            "retry-after",
            "location",
            "preference-applied",
            videos.POLL_AFTER,
            REPLAYED,
        ],
    )
    return RequestIdMiddleware(open_to_browsers)


def _publish(app: FastAPI) -> None:
    """The schema, and pages that show it. Anybody may ask for them, so each is made once, by the first who asks."""

    def openapi() -> Response:
        said = json.dumps(described(app), ensure_ascii=False, separators=(",", ":"))
        return Response(said, media_type="application/json")

    makers: dict[str, Callable[[], Response]] = {
        "/openapi.json": openapi,
        "/docs": lambda: get_swagger_ui_html(openapi_url="/openapi.json", title=app.title),
        "/redoc": lambda: get_redoc_html(openapi_url="/openapi.json", title=app.title),
    }
    for path, make in makers.items():
        app.add_api_route(path, _served(cache(make)), include_in_schema=False, response_class=Response)


def _served(made: Callable[[], Response]) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:
        return made()

    return page


if __name__ == "__main__":
    # ``make openapi``
    said = json.dumps(described(application()), indent=2, sort_keys=True, ensure_ascii=False)
    Path(sys.argv[1]).write_text(said + "\n")
