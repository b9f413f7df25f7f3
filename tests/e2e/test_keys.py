"""Keys at a running service: the deployment keeps its ring, which a test of the application alone does not see."""

import time

import httpx

from tests.stack import Stack

#: Seconds until the use of a key is in the database: what five seconds take on a busy machine.
SOON_S = 120


def test_a_key_is_let_in_noted_and_refused(stack: Stack) -> None:
    made = stack.http.post("/api/v1/keys", json={"name": "ann"}).json()
    shown = {"authorization": f"Bearer {made['secret']}"}
    with httpx.Client(base_url=stack.http.base_url, headers=shown, timeout=60) as ann:
        assert ann.get("/api/v1/jobs").json()["data"] == []
        job = {"model": "ltx2", "duration": 1, "image_url": f"{stack.peer.url}/image.png"}
        job_id = ann.post("/api/v1/generate", json=job).json()["job_id"]
        assert stack.wait(job_id)["status"] == "completed"
        assert [found["job_id"] for found in ann.get("/api/v1/jobs").json()["data"]] == [job_id]

        give_up = time.monotonic() + SOON_S
        while "last_used_at" not in stack.http.get("/api/v1/keys").json()["data"][0]:
            assert time.monotonic() < give_up, "nobody writes that keys are used"
            time.sleep(0.2)

        stack.http.post(f"/api/v1/keys/{made['key_id']}/revoke").raise_for_status()
        assert ann.get("/api/v1/jobs").status_code == 401
