"""Inputs for ``video-api demo``: made here, the same on every machine, so the demo needs no files and no network.

The picture is drawn. The video moves over a photograph of an astronaut (NASA, public domain) that scikit-image brings,
since a lip-sync model needs a real face; the voice is eSpeak NG's. Both packages are in the extra ``demo``.
"""

import ctypes
import math
import shutil
import subprocess
import wave
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

WIDTH, HEIGHT = 1280, 720
#: Length of the clip; the speech is cut to it.
SECONDS = 5
SPEECH = "Hello. I was a photograph for thirty years. Now look at me: I speak, without a graphics card."
_SUN = (880, 330)


#: A picture of somebody.
PORTRAIT = "portrait"
#: Names of the samples, by kind.
NAMES = {"image": "sample.jpg", "video": "sample.mp4", "audio": "sample.wav", PORTRAIT: "portrait.png"}


def path(kind: str, folder: Path) -> Path:
    """Where :func:`make` puts the sample of this kind."""
    return folder / NAMES[kind]


def make(kind: str, folder: Path) -> Path | None:
    """A sample file of this media kind below ``folder``; None where there is no way to make one."""
    maker = _MAKERS.get(kind)
    if maker is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return maker(folder)


def _image(folder: Path) -> Path:
    target = path("image", folder)
    landscape().save(target, quality=92)
    return target


def _portrait(folder: Path) -> Path | None:
    try:
        import skimage
    except ImportError:
        return None
    target = path(PORTRAIT, folder)
    shutil.copyfile(Path(skimage.__file__).parent / "data" / "astronaut.png", target)
    return target


def _video(folder: Path) -> Path | None:
    try:
        import imageio_ffmpeg
        import skimage
    except ImportError:
        return None
    target = path("video", folder)
    # A slow sway, so that the face has to be followed: 640x480 of the photograph's 512x512, enlarged.
    sway = "crop=w=640:h=480:x='160+60*sin(2*PI*t/4)':y='10+8*cos(2*PI*t/3)'"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-loop", "1", "-framerate", "25"]
    command += ["-i", str(Path(skimage.__file__).parent / "data" / "astronaut.png"), "-t", str(SECONDS)]
    command += ["-vf", f"scale=960:960,{sway}", "-pix_fmt", "yuv420p", str(target)]
    subprocess.run(command, check=True)
    return target


def _audio(folder: Path) -> Path | None:
    try:
        import espeakng_loader
    except ImportError:
        return None
    target = path("audio", folder)
    rate, samples = _speak(SPEECH, espeakng_loader.get_library_path(), espeakng_loader.get_data_path())
    with wave.open(str(target), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples[: rate * SECONDS * 2])
    return target


def _speak(text: str, library: str, data: str) -> tuple[int, bytes]:
    """Sampling rate and 16-bit mono samples. The calls and constants are those of espeak-ng's ``speak_lib.h``."""
    espeak = ctypes.CDLL(library)
    heard = bytearray()
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def hear(samples: object, count: int, _: object) -> int:
        if samples and count > 0:
            # A pointer, as ``callback`` says.
            heard.extend(ctypes.string_at(samples, count * 2))  # type: ignore[arg-type]
        return 0

    keep = callback(hear)  # referenced until the end: espeak holds only the address
    synchronous, utf8 = 2, 1
    rate = int(espeak.espeak_Initialize(synchronous, 0, str(data).encode(), 0))
    if rate <= 0:
        raise OSError("eSpeak NG did not find its data")
    espeak.espeak_SetSynthCallback(keep)
    encoded = text.encode()
    espeak.espeak_Synth(encoded, ctypes.c_size_t(len(encoded) + 1), 0, 1, 0, utf8, None, None)
    espeak.espeak_Synchronize()
    espeak.espeak_Terminate()
    return rate, bytes(heard)


#: A kind that is not here, or whose maker lacks its package, makes ``demo`` pass over the models that need it.
_MAKERS: Mapping[str, Callable[[Path], Path | None]] = {
    "image": _image,
    "video": _video,
    "audio": _audio,
    PORTRAIT: _portrait,
}


def landscape() -> Image.Image:
    """Sunset behind hills."""
    picture = _gradient(((0.0, (38, 42, 96)), (0.45, (171, 84, 122)), (0.62, (250, 176, 110)), (1.0, (255, 214, 150))))
    picture = ImageChops.screen(picture, _glow())
    draw = ImageDraw.Draw(picture)
    x, y = _SUN
    draw.ellipse((x - 58, y - 58, x + 58, y + 58), fill=(255, 244, 214))
    # From far to near: darker, lower and rougher.
    for base, height, waves, colour in (
        (430, 60, 1.4, (142, 84, 118)),
        (490, 80, 2.1, (98, 58, 98)),
        (560, 70, 2.9, (58, 38, 74)),
        (640, 60, 3.7, (28, 22, 44)),
    ):
        draw.polygon([(0, HEIGHT), *_ridge(base, height, waves), (WIDTH, HEIGHT)], fill=colour)
    return picture


def _gradient(stops: tuple[tuple[float, tuple[int, int, int]], ...]) -> Image.Image:
    column = Image.new("RGB", (1, HEIGHT))
    for y in range(HEIGHT):
        at = y / (HEIGHT - 1)
        after = next(i for i, (place, _) in enumerate(stops) if place >= at)
        (start, low), (end, high) = stops[max(0, after - 1)], stops[after]
        share = (at - start) / (end - start) if end > start else 0.0
        mixed = [round(a + (b - a) * share) for a, b in zip(low, high, strict=True)]
        column.putpixel((0, y), (mixed[0], mixed[1], mixed[2]))
    return column.resize((WIDTH, HEIGHT))


def _glow() -> Image.Image:
    light = Image.new("RGB", (WIDTH, HEIGHT))
    x, y = _SUN
    ImageDraw.Draw(light).ellipse((x - 150, y - 150, x + 150, y + 150), fill=(150, 96, 48))
    return light.filter(ImageFilter.GaussianBlur(90))


def _ridge(base: int, height: int, waves: float) -> list[tuple[int, float]]:
    line = []
    for x in range(0, WIDTH + 1, 4):
        turn = x / WIDTH * math.tau * waves + waves
        line.append((x, base - height * (0.6 * math.sin(turn) + 0.3 * math.sin(2.3 * turn) + 0.1 * math.sin(7 * turn))))
    return line
