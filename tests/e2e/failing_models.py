"""A program: an application on a Ray of its own, one of whose models does not load while another finds no machine.

Prints one JSON line per step. Deployments have the names of real models, so that the service itself can look at them.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.classes import deployments
from serve_app.serving.scaling import POLICY
from serve_app.serving.state import ModelState, ServeState

LIMIT_S = 100


def scaling() -> dict[str, Any]:
    """As the service has it, with short delays."""
    return {
        "min_replicas": 0,
        "initial_replicas": 0,
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 0,
        "downscale_delay_s": 1,
        "downscale_to_zero_delay_s": 1,
        "look_back_period_s": 2,
        "metrics_interval_s": 1,
        "policy": {"policy_function": POLICY},
    }


class Loads:
    """Once the weights are there."""

    def __init__(self, weights: str) -> None:
        with open(weights):
            pass

    async def generate(self) -> None:
        return


class Head:
    """Holds calls, as the dispatcher does."""

    def __init__(self, **models: DeploymentHandle) -> None:
        self._models = models
        self._state = ServeState(deployments({}))
        self._calls: list[Any] = []

    async def call(self, model: str) -> None:
        self._calls.append(self._models[model].generate.remote())

    async def let_go(self) -> None:
        for call in self._calls:
            call.cancel()

    async def models(self) -> Mapping[str, ModelState]:
        return await self._state.models()


def main(folder: Path) -> None:
    weights = folder / "weights"
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, _temp_dir=str(folder / "r"))
    serve.start(proxy_location="Disabled")
    one = serve.deployment(Loads, name="ltx2", autoscaling_config=scaling(), ray_actor_options={"num_cpus": 1})
    big = serve.deployment(Loads, name="wav2lip", autoscaling_config=scaling(), ray_actor_options={"num_cpus": 8})
    head = serve.deployment(Head, name="head", ray_actor_options={"num_cpus": 0})
    bound = head.bind(ltx2=one.bind(str(weights)), wav2lip=big.bind(str(weights)))
    handle = serve.run(bound, name="video-api", route_prefix=None)

    def until(step: str, condition: Callable[[Mapping[str, ModelState]], bool]) -> None:
        give_up = time.monotonic() + LIMIT_S
        while not condition(models := handle.models.remote().result()):
            if time.monotonic() > give_up:
                raise TimeoutError(f"{step}: {models}")
            time.sleep(0.2)
        troubles = {
            name: (state.trouble.code, state.trouble.message) for name, state in models.items() if state.trouble
        }
        print(json.dumps({"step": step, "troubles": troubles}), flush=True)

    for name in ("ltx2", "wav2lip"):
        handle.call.remote(name).result()
    until("told", lambda models: all(state.trouble for state in models.values()))
    # Serve gives up by then; only at zero it forgets that.
    until("given up", lambda models: models["ltx2"].status == "UNHEALTHY")
    handle.let_go.remote().result()
    until("forgotten", lambda models: all(s.status == "HEALTHY" and not s.trouble for s in models.values()))
    weights.touch()
    handle.call.remote("ltx2").result()
    until("mended", lambda models: models["ltx2"].running_replicas > 0)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
