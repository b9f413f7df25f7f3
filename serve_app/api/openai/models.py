"""``/v1/models``: what ``POST /v1/videos`` takes as its model."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from serve_app.api.auth import Reader
from serve_app.api.errors import Forbidden, InternalError, InvalidRequest, ModelNotFound, Unauthorized, Unavailable
from serve_app.api.openai.error import SHAPE
from serve_app.api.openai.request import PROMPTED, model_of
from serve_app.api.problems import documented

router = APIRouter(prefix="/v1/models", tags=["openai"], responses=documented(InternalError, Unavailable, shape=SHAPE))


class Model(BaseModel):
    """A model. `GET /api/v1/models` says what can be asked of it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(0, description="Not known, so 0.")
    owned_by: str = "video-api"


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get(
    "",
    operation_id="list_openai_models",
    summary="OpenAI: list models",
    response_description="The models that make a video of a prompt.",
    responses=documented(Unauthorized, Forbidden, shape=SHAPE),
)
async def list_models(_: Reader) -> ModelList:
    """The models that make a video of a prompt."""
    return ModelList(data=[Model(id=name) for name in PROMPTED])


@router.get(
    "/{model}",
    operation_id="get_openai_model",
    summary="OpenAI: look at a model",
    response_description="The model.",
    responses=documented(Unauthorized, Forbidden, ModelNotFound, InvalidRequest, shape=SHAPE),
)
async def get_model(model: Annotated[str, Path(description="`id` of the model.")], _: Reader) -> Model:
    """One of them."""
    return Model(id=model_of(model).name)
