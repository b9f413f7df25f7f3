"""The models this build knows, by name. API, OpenAPI, queue, health, metrics and CLI read this and nothing else."""

from deployments.engine import ModelSpec
from deployments.ltx2.spec import SPEC as LTX2
from deployments.wav2lip.spec import SPEC as WAV2LIP

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in (LTX2, WAV2LIP)}
