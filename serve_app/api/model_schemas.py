"""Bodies of responses about models."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from pydantic import BaseModel, Field

from deployments.contract import ANY_SIZE, MediaKind
from deployments.engine import InputSpec, ModelSpec, Params
from serve_app.jobs.abilities import Told


class InputView(BaseModel):
    """A media input: the field `<name>_url` of `generate`, or an upload."""

    name: str
    kinds: list[MediaKind]
    description: str
    max_bytes: int
    max_seconds: float | None
    optional: bool = Field(description="Whether `null` may be given for it, for a video without.")

    @classmethod
    def of(cls, spec: InputSpec) -> "InputView":
        return cls(
            name=spec.name,
            kinds=list(spec.kinds),
            description=spec.description,
            max_bytes=spec.max_bytes,
            max_seconds=spec.max_seconds,
            optional=spec.optional,
        )


class VariantView(BaseModel):
    """One of a model's ways to make a video, on one deployment."""

    name: str = Field(description="A value of the model's `variant_field`. Empty: its default, or its only one.")
    default: bool = Field(description="Whether this is what is made where a request names none.")
    max_size: int | None = Field(description="Of one video, in the model's `size_unit`; null: no limit of its own.")


class DeploymentView(BaseModel):
    """What one kind of GPU makes of a model. A job goes to the smallest that can make it."""

    deployment: str
    gpu_memory_gib: int | None = Field(
        description="The least that its GPUs have; null: it takes whatever node there is."
    )
    available: bool = Field(description="Whether such a GPU is there or can be rented.")
    weights: str | None = Field(description="The version of the checkpoint; null: not known yet, or there is only one.")
    random_weights: bool | None = Field(description="Whether its videos are noise; null: not known yet.")
    variants: list[VariantView] | None = Field(description="What it can make; null: not known yet.")
    reported_at: datetime | None = Field(
        description="When a replica last said this of itself. null: none has yet, and it is what is expected on paper."
    )

    @classmethod
    def of(cls, told: Told) -> "DeploymentView":
        candidate, ability = told.candidate, told.ability
        return cls(
            deployment=candidate.deployment,
            gpu_memory_gib=candidate.gib,
            available=candidate.had,
            weights=(ability and ability.weights) or None,
            random_weights=ability and ability.random_weights,
            variants=None if candidate.sizes is None else _variants(candidate.sizes, candidate.default_variant),
            reported_at=told.reported_at,
        )


def _variants(sizes: Mapping[str, int], default: str) -> list[VariantView]:
    # Those that it cannot make at all have the size 0.
    return [
        VariantView(name=name, default=name == default, max_size=None if size >= ANY_SIZE else size)
        for name, size in sizes.items()
        if size > 0
    ]


@cache
def _schema(params: type[Params]) -> Mapping[str, Any]:
    # It never changes, and takes longer than all the rest.
    return params.model_json_schema()


class ModelView(BaseModel):
    """A model and what can be asked of it."""

    model: str
    title: str
    description: str
    inputs: list[InputView]
    params_schema: Mapping[str, Any] = Field(description="JSON Schema of the parameters of `generate`.")
    variant_field: str | None = Field(description="The parameter that says which variant; null: there is only one.")
    size_unit: str | None = Field(description="What sizes are counted in; null: its videos have no limit of size.")
    deployments: list[DeploymentView] = Field(description="By kind of GPU, the largest first.")

    @classmethod
    def of(cls, spec: ModelSpec, deployments: Sequence[Told]) -> "ModelView":
        return cls(
            model=spec.name,
            title=spec.title,
            description=spec.description,
            inputs=[InputView.of(item) for item in spec.inputs],
            params_schema=_schema(spec.params),
            variant_field=spec.variant_field or None,
            size_unit=spec.size_unit if spec.size_field else None,
            deployments=[DeploymentView.of(each) for each in deployments],
        )
