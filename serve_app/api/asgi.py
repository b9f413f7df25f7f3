"""The FastAPI application: routers, errors, CORS, request ids."""

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from serve_app.api import files, generate, health, jobs, presign, problems, webhooks
from serve_app.api.gate import Gate
from serve_app.errors import InternalError, Unavailable
from serve_app.request_id import RequestIdMiddleware
from serve_app.schemas import Problem
from serve_app.services import Services

DESCRIPTION = """\
Post an image and a prompt, or a video and an audio track; get a durable job; download an mp4.

1. `POST /api/v1/generate` with URLs of the inputs, or upload them first: `POST /api/v1/presign/upload`, then PUT.
2. Poll `GET /api/v1/jobs/{job_id}`, or be told at `webhook_url`.
3. Download from `result_url`.

Errors are `application/problem+json` with a stable `code`.
"""


def create_asgi(services: Services) -> ASGIApp:
    """The API over these parts; starts nothing."""
    app = FastAPI(
        title="video-api",
        version="0.1.0",
        description=DESCRIPTION,
        responses=problems.documented(InternalError, Unavailable),
    )
    app.state.services = services
    problems.install(app)
    routers = [part.router for part in (generate, jobs, presign, webhooks, health, files)]
    for router in routers:
        app.include_router(router)
    _document_problems(app)
    # Around the application and not in it, so that the answers to a crash and of the gate have these headers too.
    open_to_browsers = CORSMiddleware(
        Gate(app, services.settings, routers),
        allow_origins=list(services.settings.cors_origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["x-request-id"],
    )
    return RequestIdMiddleware(open_to_browsers)


def _document_problems(app: FastAPI) -> None:
    """Put ``Problem`` among the schemas: the error responses refer to it by name."""
    generated = app.openapi

    def openapi() -> dict[str, object]:
        schema = generated()
        schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
