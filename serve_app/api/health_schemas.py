"""The body of ``/health``."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field


class QueueCounts(BaseModel):
    pending: int
    processing: int
    completed: int
    failed: int


Part = Literal["ok", "down"]
#: Ray's own store; nothing of the service is in it.
RedisHealth = Literal["ok", "down", "unused"]
ModelHealth = Literal["ok", "starting", "waiting", "down"]
Weights = Literal["configured", "random", "unknown"]


class Health(BaseModel):
    """200 when every part works, else 503."""

    api: Part
    database: Part
    storage: Part
    ray: Part
    redis: RedisHealth = Field(
        description="Where Ray keeps its state. While it is `down`, jobs are taken and run, but a restart of the head "
        "costs the GPU replicas. `unused`: Ray has none."
    )
    models: Mapping[str, ModelHealth] = Field(
        default_factory=dict,
        description="`starting`: a replica loads the model. `waiting`: for a machine that fits. `down`: replicas do "
        "not start. `details` says why; none of them makes the service unhealthy. Empty when Ray does not answer.",
    )
    queues: Mapping[str, QueueCounts] = Field(description="Empty when the database does not answer.")
    weights: Mapping[str, Weights] = Field(
        description="`random`: videos are noise. `unknown`: not on this host; `notes.random_weights` of a job tells."
    )
    details: Mapping[str, str] = Field(default_factory=dict, description="Why a part or a model is not ok.")
