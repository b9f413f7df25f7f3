"""``GET /api/v1/models``: what can be asked for, and of which GPUs."""

from fastapi import APIRouter

from deployments.registry import MODELS
from serve_app.api.auth import Reader
from serve_app.api.errors import Forbidden, Unauthorized
from serve_app.api.model_schemas import ModelView
from serve_app.api.problems import documented
from serve_app.services import ServicesOf

router = APIRouter(prefix="/api/v1", tags=["generate"])


@router.get(
    "/models",
    operation_id="list_models",
    summary="List models",
    response_description="Each model, its parameters, and what can be made of it here.",
    responses=documented(Unauthorized, Forbidden),
)
async def list_models(_: Reader, services: ServicesOf) -> list[ModelView]:
    """The models, the JSON Schema of their parameters, and what their deployments can make."""
    told = await services.abilities.told()
    return [ModelView.of(spec, told.get(name, ())) for name, spec in MODELS.items()]
