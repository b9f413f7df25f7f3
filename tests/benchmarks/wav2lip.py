"""How long Wav2Lip takes here, and that its memory is flat in the clip's length.

``python tests/benchmarks/wav2lip.py``: 854 x 480, 25 fps, 5 s, warm; stages, generator against the eager network, job.
``python tests/benchmarks/wav2lip.py --memory``: peak RSS of a 1-minute and of a 10-minute clip.

CPU-seconds can be trusted on a busy machine, wall times only on a quiet one. Weights are random: the speed is the same.
The first adds its figures to ``tests/benchmarks/results/wav2lip.{json,md}``: by the device, and by torch's threads.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import cv2
import numpy as np
import torch
from skimage import data

from deployments.engine import InputFile
from deployments.media import codec
from deployments.media.ffmpeg import program as ffmpeg_path
from deployments.media.formats import MP4
from deployments.wav2lip import audio, checkpoint, video
from deployments.wav2lip.boxes import Found
from deployments.wav2lip.centerface import CenterFace
from deployments.wav2lip.engine import Wav2LipEngine
from deployments.wav2lip.generator import TorchGenerator, best_dtype
from deployments.wav2lip.spec import SPEC
from deployments.wav2lip.video import Frame
from tests.benchmarks import report
from tests.benchmarks.clock import Clock, measured

SIZE = (854, 480)
SECONDS = 5
COLUMNS = ("stage", "wall s", "CPU s", "CPU s of ffmpeg")


def talking_head(path: Path, seconds: float, fps: int = 25, size: tuple[int, int] = SIZE) -> Path:
    """NASA's photograph of Eileen Collins (public domain), swaying; a tone that rises and falls four times a second."""
    width, height = size
    picture = cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR)
    side = (width - 512 * height // 480) // 2 + 1
    scaled = cv2.resize(picture, (512 * height // 480, height))
    base = cv2.resize(cv2.copyMakeBorder(scaled, 0, 0, side, side, cv2.BORDER_REFLECT), size)
    command = [ffmpeg_path(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{width}x{height}"]
    command += ["-r", str(fps), "-i", "pipe:0", "-f", "lavfi", "-i"]
    command += [f"aevalsrc=0.3*sin(2*PI*150*t)*(0.5+0.5*sin(2*PI*4*t)):d={seconds}:s=44100"]
    command += ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    for number in range(round(seconds * fps)):
        t = number / fps
        move = cv2.getRotationMatrix2D((width / 2, height * 0.4), 4 * np.sin(1.7 * t), 0.95 + 0.05 * np.sin(1.2 * t))
        move[:, 2] += [0.012 * width * np.sin(2 * t), 0.01 * height * np.cos(2.8 * t)]
        process.stdin.write(cv2.warpAffine(base, move, size, borderMode=cv2.BORDER_REFLECT).tobytes())
    process.stdin.close()
    if process.wait() != 0:
        raise RuntimeError("ffmpeg failed")
    return path


class Timed:
    """A generator or detector whose calls are measured."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped
        self.clock = Clock()
        self.units = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def __call__(self, first: Any, *rest: Any) -> Any:
        with measured(self.clock):
            result = self._wrapped(first, *rest)
        self.units += len(first)
        return result


def run_job(engine: Wav2LipEngine, source: Path, workdir: Path, params: Mapping[str, Any]) -> tuple[Clock, Clock, int]:
    """``prepare`` and ``run`` of one job, and its frames."""
    prepare, run = Clock(), Clock()
    with measured(prepare):
        prepared = engine.prepare(
            params, {"video": InputFile(source, "video/mp4"), "audio": InputFile(source, "video/mp4")}, workdir
        )
    with measured(run):
        made = engine.run(prepared, lambda stage, fraction: None)
    return prepare, run, made.tally.frames


def per_frame(call: Callable[[], object], frames: int, rounds: int = 3) -> float:
    """Least CPU-milliseconds a frame of a few rounds, after one to warm up."""
    call()
    spent = []
    for _ in range(rounds):
        clock = Clock()
        with measured(clock):
            call()
        spent.append(clock.own)
    return min(spent) / frames * 1000


def speed() -> None:
    """Print the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    network = checkpoint.build(checkpoint.random_weights(), "random weights")
    generator, detector = Timed(TorchGenerator(network, device)), Timed(CenterFace(device))
    engine = Wav2LipEngine(generator, {"centerface": detector})
    paste = Timed(engine._paste)
    engine._paste = paste  # type: ignore[assignment]
    loaded = time.perf_counter() - start
    encoder = "h264_nvenc" if codec.probe(cuda=device.type == "cuda") else "libx264"
    said = f"{best_dtype(device)}, {torch.get_num_threads()} threads, {encoder}, networks ready in {loaded:.1f} s"
    print(f"{device}, {said}\n")
    with tempfile.TemporaryDirectory() as room:
        clip = talking_head(Path(room) / "clip.mp4", SECONDS)
        run_job(engine, clip, Path(room), {})
        best: tuple[float, list[tuple[str, Clock]]] | None = None
        for _ in range(3):
            parts_timed = (detector, generator, paste)
            for each in parts_timed:
                each.clock = Clock()
            prepare, run, frames = run_job(engine, clip, Path(room), {})
            rest = Clock(
                run.wall - sum(each.clock.wall for each in parts_timed),
                run.own - sum(each.clock.own for each in parts_timed),
                run.programs,
            )
            rows = [
                ("prepare: probe, sound, mel", prepare),
                ("run: detection", detector.clock),
                ("run: generator", generator.clock),
                ("run: paste", paste.clock),
                ("run: crop, pipes; ffmpeg's work not hidden", rest),
                ("run", run),
            ]
            if best is None or prepare.wall + run.wall < best[0]:
                best = prepare.wall + run.wall, rows
        assert best is not None
        print(f"best of 3, {SIZE[0]} x {SIZE[1]}, {frames} frames{'wall s':>21}{'CPU s':>9}{'ffmpeg s':>10}")
        for name, clock in best[1]:
            print(f"  {name:<50}{clock.wall:>7.2f}{clock.own:>9.2f}{clock.programs:>10.2f}")
        print(f"  {'whole job':<50}{best[0]:>7.2f}   ({SECONDS / best[0]:.2f} x real time)")
        keep(device, f"{SIZE[0]} x {SIZE[1]}, {frames} frames, {said}", *best)
        print(f"  peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB\n")
        parts(Path(room), clip)
    numbers = np.random.default_rng(0)
    faces = numbers.integers(0, 256, (16, 96, 96, 3), dtype=np.uint8)
    mels = numbers.random((16, 80, 16), dtype=np.float32) * 8 - 4
    eager = network.to(device)
    picture = torch.from_numpy(numbers.random((16, 6, 96, 96), dtype=np.float32)).to(device)
    sound = torch.from_numpy(mels[:, None]).to(device)

    def plainly() -> object:
        with torch.inference_mode():
            return eager(sound, picture)

    slow = per_frame(plainly, 16)
    fast = per_frame(lambda: generator(faces, mels), 16)
    exact = TorchGenerator(network, device, torch.float32)
    middle = per_frame(lambda: exact(faces, mels), 16)
    print("generator, CPU-ms a frame, batch 16")
    print(f"  eager float32, contiguous             {slow:6.1f}")
    print(f"  folded, channels last, float32        {middle:6.1f}   {slow / middle:.2f} x")
    print(f"  the same in {best_dtype(device)!s:<26}{fast:6.1f}   {slow / fast:.2f} x")


def _worked(rows: Sequence[tuple[str, Clock]]) -> tuple[float, float]:
    """Of ``prepare`` and ``run``, the first row and the last."""
    ends = rows[0][1], rows[-1][1]
    return sum(clock.own for clock in ends), sum(clock.programs for clock in ends)


def keep(device: torch.device, said: str, whole: float, rows: Sequence[tuple[str, Clock]]) -> None:
    """Among the results."""
    result = {"what": said, "whole_s": round(whole, 3), "stages": {name: asdict(clock) for name, clock in rows}}
    cells = [
        (name, f"{clock.wall:.2f}", f"{clock.own:.2f}", f"{clock.programs:.2f}")
        for name, clock in [*rows, ("whole job", Clock(whole, *_worked(rows)))]
    ]
    lines = [f"Best of 3 warm jobs in one process: {said}.", "", *report.table(COLUMNS, cells)]
    report.save("wav2lip", f"{device.type}, {torch.get_num_threads()} threads", report.machine(device), result, lines)


def parts(room: Path, clip: Path) -> None:
    """What the stages beside the networks cost on their own."""
    footage, voice = SPEC.input("video"), SPEC.input("audio")
    source = video.probe(clip, MP4, footage)
    print("stages on their own, CPU s (ffmpeg's included)")
    for name, call in {
        "probe": lambda: video.probe(clip, MP4, footage),
        "decode": lambda: sum(1 for _ in video.read(source, 10**6)),
        "sound to mel": lambda: audio.mel_for(audio.decode(clip, MP4, voice, room)[0], SECONDS * 25, Fraction(25)),
    }.items():
        clock = Clock()
        with measured(clock):
            call()
        print(f"  {name:<20}{clock.own + clock.programs:6.2f}")
    print()


class Copying:
    """A network that gives the face back: for memory, where time is not the point."""

    batch = 16

    def __call__(self, faces: Frame, mels: np.ndarray) -> Frame:
        return faces


class Fixed:
    """A detector that works on real frames without a network."""

    every, batch = 5, 4

    def __call__(self, frames: Sequence[Frame]) -> list[Found]:
        height, width = frames[0].shape[:2]
        return [np.array([[width * 0.3, height * 0.1, width * 0.6, height * 0.7, 1]], np.float32) for _ in frames]


def one_peak(clip: Path, mode: str, real_first: bool) -> None:
    """Print the peak RSS in MB of one job in this process, and its frames."""
    with tempfile.TemporaryDirectory() as room:
        engine = Wav2LipEngine() if real_first else Wav2LipEngine(Copying(), {"centerface": Fixed()})
        params = {"sync_mode": mode}
        inputs = {
            "video": InputFile(clip, "video/mp4"),
            "audio": InputFile(clip.with_suffix(".wav"), "audio/wav"),
        }
        prepared = engine.prepare(params, inputs, Path(room))
        frames = engine.run(prepared, lambda stage, fraction: None).tally.frames
    print(json.dumps({"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "frames": frames}))


def memory(real: bool, fps: int, size: tuple[int, int], modes: Sequence[str]) -> None:
    """Compare 1 and 10 minutes: a video as long as the sound, and one of a fifth, looped and mirrored."""
    networks = "real networks" if real else "stand-ins for the networks"
    print(f"{size[0]} x {size[1]}, {fps} fps, {networks}\n{'':<24}{'1 min':>9}{'10 min':>9}{'growth':>9}")
    with tempfile.TemporaryDirectory() as room:
        for mode in modes:
            share = 1.0 if mode == "cut" else 0.2
            peaks = []
            for minutes in (1, 10):
                clip = talking_head(Path(room) / f"{minutes}.mp4", minutes * 60 * share, fps, size)
                sound = ["-f", "lavfi", "-i", f"sine=f=200:d={minutes * 60}:r=44100", str(clip.with_suffix(".wav"))]
                subprocess.run([ffmpeg_path(), "-v", "error", "-y", *sound], check=True)
                command = [sys.executable, __file__, "--peak", str(clip), "--mode", mode, *(["--real"] if real else [])]
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
                told = json.loads(done.stdout)
                assert told["frames"] == minutes * 60 * fps
                peaks.append(told["mb"])
            print(
                f"  {mode:<22}{peaks[0]:>6.0f} MB{peaks[1]:>6.0f} MB{(peaks[1] / peaks[0] - 1) * 100:>8.1f}%",
                flush=True,
            )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--real", action="store_true", help="with --memory: the real networks; 10 minutes take long")
    parser.add_argument("--fps", type=int, default=5, help="with --memory")
    parser.add_argument("--size", default="640x360", help="with --memory")
    parser.add_argument("--modes", default="cut,loop,pingpong", help="with --memory")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--mode", default="cut", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        one_peak(arguments.peak, arguments.mode, arguments.real)
    elif arguments.memory:
        width, height = (int(side) for side in arguments.size.split("x"))
        memory(arguments.real, arguments.fps, (width, height), arguments.modes.split(","))
    else:
        speed()


if __name__ == "__main__":
    main()
