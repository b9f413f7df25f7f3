"""ICC profiles of other colour spaces than sRGB, as cameras embed them, and what their colours are in sRGB."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Columns are red, green and blue in XYZ under D50, which is what a profile holds.
Matrix = NDArray[np.float64]
_SRGB = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
_P3 = np.array([[0.515121, 0.291977, 0.157104], [0.241196, 0.692245, 0.066574], [-0.001053, 0.041885, 0.784073]])
_ADOBE = np.array(
    [[0.6097559, 0.2052401, 0.1492240], [0.3111242, 0.6256560, 0.0632197], [0.0194811, 0.0608902, 0.7448387]]
)
_WHITE = (0.9642, 1.0, 0.8249)
_ADOBE_GAMMA = 563 / 256


@dataclass(frozen=True)
class Space:
    """A colour space of red, green and blue."""

    matrix: Matrix
    #: The parameters of its curve as a profile says it: one is an exponent, five are sRGB's.
    curve: Sequence[float]
    linear: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    def profile(self) -> bytes:
        """As ICC, version 4."""
        kind = {1: 0, 5: 3}[len(self.curve)]
        curve = b"para" + bytes(4) + struct.pack(">HH", kind, 0) + b"".join(map(_fixed, self.curve))
        tags = {b"desc": _text("test"), b"cprt": _text("none"), b"wtpt": _xyz(_WHITE)}
        tags |= {name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), self.matrix.T, strict=True)}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
        table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
        for name, data in tags.items():
            table += name + struct.pack(">II", at + len(body), len(data))
            body += data + bytes(-len(data) % 4)
        head = struct.pack(">I", at + len(body)) + bytes(4) + b"\4\x30\0\0mntrRGB XYZ " + bytes(12) + b"acsp"
        return (head.ljust(68, b"\0") + b"".join(map(_fixed, _WHITE))).ljust(128, b"\0") + table + body

    def in_srgb(self, colour: tuple[int, int, int]) -> tuple[int, int, int]:
        """The colour of this space as sRGB, which must be able to show it."""
        light = np.linalg.solve(_SRGB, self.matrix @ self.linear(np.array(colour) / 255))
        assert light.min() > -0.001, "sRGB has no such colour"
        light = light.clip(0, 1)
        coded = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
        red, green, blue = (round(float(value) * 255) for value in coded)
        return red, green, blue


def _srgb_curve(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


#: What phones take pictures in, and what cameras may.
DISPLAY_P3 = Space(_P3, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045), _srgb_curve)
ADOBE_RGB = Space(_ADOBE, (_ADOBE_GAMMA,), lambda values: values**_ADOBE_GAMMA)


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: Sequence[float] | NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(_fixed(float(value)) for value in values)


def _text(text: str) -> bytes:
    data = text.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(data), 28) + data
