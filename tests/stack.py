"""The whole service, running: what end-to-end and chaos tests hold in their hands."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from serve_app.local.stack import running
from tests.fakes.http_peer import HttpPeer

CONFIG = Path(__file__).parents[1] / "configs" / "local.yaml"
APP = "video-api"
ENDED = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Stack:
    """A running service, an HTTP client that is let in, and a peer that serves ``/image.png``."""

    http: httpx.Client
    peer: HttpPeer
    dashboard: httpx.Client

    def submit(self, **body: Any) -> str:
        """Ask for a one-second LTX-2 video of the peer's image unless ``body`` says otherwise; the job's id."""
        usual = {"model": "ltx2", "duration": 1, "image_url": f"{self.peer.url}/image.png"}
        request = body if body.get("model", "ltx2") != "ltx2" else usual | body
        answer = self.http.post("/api/v1/generate", json=request)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["job_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/api/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait(self, job_id: str, until: Callable[[dict[str, Any]], bool] | None = None, timeout_s: float = 400) -> Any:
        """Poll, as clients do, until ``until`` holds for the job (default: it has ended)."""
        give_up = time.monotonic() + timeout_s
        while True:
            job = self.job(job_id)
            if (until or (lambda j: j["status"] in ENDED))(job):
                return job
            assert time.monotonic() < give_up, f"still {job}"
            assert until is None or job["status"] not in ENDED, f"ended too early: {job}"
            time.sleep(0.1)

    def replicas(self, deployment: str) -> list[dict[str, Any]]:
        """Running replicas as the dashboard's REST API shows them, with their pids."""
        details = self.dashboard.get("/api/serve/applications/").json()
        replicas = details["applications"][APP]["deployments"][deployment]["replicas"]
        return [replica for replica in replicas if replica["state"] == "RUNNING"]

    def target_replicas(self, deployment: str) -> int:
        """How many replicas the autoscaler wants."""
        details = self.dashboard.get("/api/serve/applications/").json()
        return int(details["applications"][APP]["deployments"][deployment]["target_num_replicas"])


@contextmanager
def started() -> Iterator[Stack]:
    """Start the service; where and on which port comes from the environment."""
    picture = io.BytesIO()
    Image.linear_gradient("L").resize((640, 480)).convert("RGB").save(picture, "PNG")
    with HttpPeer() as peer, running(CONFIG) as endpoints:
        peer.files["/image.png"] = picture.getvalue()
        headers = {"authorization": f"Bearer {endpoints.api_key}"}
        token = {"authorization": f"Bearer {endpoints.dashboard_token}"}
        with (
            httpx.Client(base_url=endpoints.api_url, headers=headers, timeout=60) as http,
            httpx.Client(base_url=endpoints.dashboard_url, headers=token, timeout=60) as dashboard,
        ):
            yield Stack(http, peer, dashboard)
