"""Lip sync through the whole service: a face and a voice in, a video of exactly the voice's length out."""

import httpx
import pytest

from serve_app.cli import samples
from tests.e2e.test_ltx2_job import ffmpeg_says
from tests.stack import Stack


@pytest.fixture(scope="module")
def inputs(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Links to the demo's face and voice."""
    folder = tmp_path_factory.mktemp("samples")
    for kind in ("video", "audio"):
        path = samples.make(kind, folder)
        assert path is not None
        stack.peer.files[f"/{path.name}"] = path.read_bytes()
    return {"video_url": f"{stack.peer.url}/sample.mp4", "audio_url": f"{stack.peer.url}/sample.wav"}


def test_a_face_speaks(stack: Stack, inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    job = stack.wait(stack.submit(model="wav2lip", **inputs))
    assert job["status"] == "completed", job
    assert job["media"] == {"width": 640, "height": 480, "fps": "25/1", "frames": 125, "has_audio": True}
    assert job["notes"]["frames_without_face"] == 0
    video = tmp_path_factory.mktemp("out") / "out.mp4"
    video.write_bytes(httpx.get(job["result_url"]).content)
    said = ffmpeg_says(video)
    assert "Duration: 00:00:05.00" in said
    assert "Audio: aac" in said
    assert httpx.get(job["poster_url"]).headers["content-type"] == "image/webp"


def test_a_still_image_is_accepted_as_the_video_and_its_upload_found(stack: Stack, inputs: dict[str, str]) -> None:
    ticket = stack.http.post("/api/v1/presign/upload", json={"input_type": "image", "content_type": "image/png"}).json()
    picture = stack.peer.files["/image.png"]
    headers = {"content-type": ticket["content_type"]}
    assert httpx.put(ticket["upload_url"], content=picture, headers=headers).status_code == 200
    job = stack.wait(stack.submit(model="wav2lip", job_id=ticket["job_id"], audio_url=inputs["audio_url"]))
    # A grey gradient shows nobody: the image went all the way to the face detector.
    assert (job["status"], job["error_code"]) == ("failed", "no_face_found"), job


def test_bad_media_fail_with_a_code_and_the_replica_lives(stack: Stack, inputs: dict[str, str]) -> None:
    video = stack.peer.files["/sample.mp4"]
    bad = {
        "/truncated.mp4": video[: len(video) // 2],
        "/empty.mp4": b"",
        "/page.mp4": b"<!doctype html><html></html>",
        "/list.mp4": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n",
        "/noise.mp4": video[:64] + bytes(range(256)) * 100,
        "/sound.mp4": stack.peer.files["/sample.wav"],
    }
    stack.peer.files |= bad
    stack.wait(stack.submit(model="wav2lip", **inputs))
    before = [replica["pid"] for replica in stack.replicas("wav2lip")]
    ids = [stack.submit(model="wav2lip", **(inputs | {"video_url": stack.peer.url + path})) for path in bad]
    for job in map(stack.wait, ids):
        assert job["status"] == "failed"
        assert job["error_code"] in ("invalid_media", "unsupported_media"), job
        assert job["attempt"] == 0
    assert stack.wait(stack.submit(model="wav2lip", **inputs))["status"] == "completed"
    assert [replica["pid"] for replica in stack.replicas("wav2lip")] == before
