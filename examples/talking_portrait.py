"""A portrait that talks: LTX-2 makes it move as the prompt says, Wav2Lip makes it speak.

Both are asked for at once; the second waits for the video of the first.

    python examples/talking_portrait.py portrait.jpg "She smiles into the camera" speech.wav talking.mp4

VIDEO_API_URL says where the service is (default: on this machine), VIDEO_API_KEY who asks.
"""

import argparse
import os
import sys
from pathlib import Path

from serve_app.client import Client

parser = argparse.ArgumentParser(description="Make a portrait talk.")
parser.add_argument("portrait", type=Path)
parser.add_argument("prompt")
parser.add_argument("speech", type=Path)
parser.add_argument("video", type=Path, help="what to save")
parser.add_argument(
    "--duration", type=int, default=5, help="seconds that are filmed; played to and fro for more speech"
)
parser.add_argument("--face-box", nargs=4, type=int, help="top bottom left right, where no face can be found by itself")
given = parser.parse_args()
url, key = os.environ.get("VIDEO_API_URL", "http://127.0.0.1:8000"), os.environ.get("VIDEO_API_KEY")
if not key:
    parser.error("set VIDEO_API_KEY")

with Client(url, key) as client:
    picture, sound = client.upload(given.portrait, "image"), client.upload(given.speech, "audio")
    moving = client.generate("ltx2", job_id=picture, prompt=given.prompt, duration=given.duration)
    lips = {"sync_mode": "pingpong", "face_box": given.face_box}
    talking = client.generate("wav2lip", job_id=sound, video_url=f"job:{moving['job_id']}", **lips)
    job = client.wait(talking["job_id"], lambda job: print(job["stage"], f"{job['progress']:.0f}%"))
    if job["status"] != "completed":
        sys.exit(f"{job['status']}: {job.get('error_message', '')}")
    client.download(job["job_id"], given.video)
print(given.video)
