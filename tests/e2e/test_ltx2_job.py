"""A client's view of the whole service: HTTP in, mp4 and webhook out."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import imageio_ffmpeg
from PIL import Image
from standardwebhooks import Webhook

from tests.stack import Stack


def ffmpeg_says(path: Path) -> str:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path), "-f", "null", "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def test_a_broken_link_fails_before_any_gpu_is_asked_for(stack: Stack) -> None:
    before = stack.target_replicas("ltx2"), {replica["pid"] for replica in stack.replicas("ltx2")}
    # Of a label that is too long for a name no name server is asked, as there may be none.
    nowhere = f"http://{'x' * 64}.invalid/x.png"
    for link in (f"{stack.peer.url}/missing.png", "http://127.0.0.1:9/refused.png", nowhere):
        job = stack.wait(stack.submit(image_url=link))
        assert job["status"] == "failed"
        assert job["error_code"] in ("source_rejected", "source_unreachable")
        assert job["attempt"] == 0
    # Zero and none, unless a test before this one has had some started; that may have ended meanwhile.
    assert stack.target_replicas("ltx2") <= before[0]
    assert {replica["pid"] for replica in stack.replicas("ltx2")} <= before[1]


def test_an_image_by_url_becomes_a_playable_video_and_a_signed_webhook(stack: Stack, tmp_path: Path) -> None:
    job_id = stack.submit(duration=2, width=192, height=128, seed=7, webhook_url=f"{stack.peer.url}/hook")
    job = stack.wait(job_id)
    assert job["status"] == "completed", job
    assert (job["progress"], job["attempt"], job["notes"]["random_weights"]) == (100.0, 1, True)
    assert job["media"] == {"width": 192, "height": 128, "fps": "24/1", "frames": 49, "has_audio": True}

    video = tmp_path / "out.mp4"
    video.write_bytes(httpx.get(job["result_url"]).content)
    said = ffmpeg_says(video)
    assert "Video: h264" in said
    assert "192x128" in said
    assert "24 fps" in said
    assert "Audio: aac" in said
    assert "frame=   49" in said

    poster = tmp_path / "poster.webp"
    poster.write_bytes(httpx.get(job["poster_url"]).content)
    with Image.open(poster) as first:
        assert (first.format, first.size) == ("WEBP", (192, 128))

    posted = stack.peer.posted.get(timeout=30)
    assert json.loads(posted.body)["job_id"] == job_id
    secret = stack.http.get("/api/v1/webhooks/secret").json()["secret"]
    payload = Webhook(secret).verify(posted.body.decode(), posted.headers)
    assert payload["status"] == "completed"
    assert httpx.get(payload["video_url"], headers={"range": "bytes=4-7"}).content == b"ftyp"


def test_an_uploaded_image_needs_no_url(stack: Stack) -> None:
    ticket = stack.http.post("/api/v1/presign/upload", json={"input_type": "image", "content_type": "image/png"}).json()
    picture = stack.peer.files["/image.png"]
    put = httpx.put(ticket["upload_url"], content=picture, headers={"content-type": ticket["content_type"]})
    assert put.status_code == 200
    job_id = stack.submit(image_url=None, job_id=ticket["job_id"])
    assert stack.wait(job_id)["status"] == "completed"


def test_a_prompt_alone_becomes_a_video_and_the_replica_has_said_what_it_can_make(stack: Stack) -> None:
    job = stack.wait(stack.submit(image_url=None, prompt="A storm at sea"))
    assert job["status"] == "completed", job
    while not (found := deployments_of(stack, "ltx2"))[0]["reported_at"]:
        # It speaks when Serve asks for its health.
        time.sleep(0.2)
    (only,) = found
    assert (only["random_weights"], only["available"]) == (True, True)
    assert job["notes"]["recipe"] in {variant["name"] for variant in only["variants"] if variant["default"]}


def deployments_of(stack: Stack, model: str) -> list[dict[str, Any]]:
    return next(found["deployments"] for found in stack.http.get("/api/v1/models").json() if found["model"] == model)


def test_cancel_stops_a_running_job(stack: Stack) -> None:
    job_id = stack.submit(duration=10, recipe="quality", width=512, height=320)
    stack.wait(job_id, lambda job: job["status"] == "processing" and job["progress"] > 10)
    assert stack.http.post(f"/api/v1/jobs/{job_id}/cancel").status_code == 200
    job = stack.wait(job_id)
    assert job["status"] == "cancelled"
    assert job["progress"] < 90
    # The GPU is free: the next job goes through.
    assert stack.wait(stack.submit())["status"] == "completed"


def test_health_and_metrics_tell_the_truth(stack: Stack) -> None:
    health = stack.http.get("/health")
    assert health.status_code == 200, health.text
    body = health.json()
    assert {body[part] for part in ("api", "database", "storage", "ray")} == {"ok"}
    assert body["queues"]["ltx2"]["completed"] >= 1
    metrics = stack.http.get("/metrics").text
    assert 'video_jobs_total{code="",model="ltx2",status="completed"}' in metrics
    assert 'video_job_stage_seconds_bucket{le="+Inf",model="ltx2",stage="run"}' in metrics
    assert 'video_gpu_busy_seconds_total{model="ltx2"}' in metrics
