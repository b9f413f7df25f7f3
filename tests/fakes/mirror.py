"""An engine that returns its input: the picture it was given, as a video of one frame."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.contract import EngineAbility, MediaFacts
from deployments.engine import InputFile, InputSpec, ModelSpec, Params, Rendered, Step
from deployments.ltx2 import picture
from deployments.media.codec import video_codec
from deployments.media.mp4 import Mp4Encoder

Frame = NDArray[np.uint8]


class MirrorEngine:
    """Reads as LTX-2 does and writes as it does; nothing in between."""

    random_weights = False

    def prepare(self, params: Mapping[str, Any], inputs: Mapping[str, InputFile], workdir: Path) -> Image.Image:
        given = inputs["image"]
        image = picture.read(given.path, given.format(SPEC.input("image")))
        return picture.fit(image, image.width // 2 * 2, image.height // 2 * 2, "crop")

    def run(self, prepared: Image.Image, step: Step) -> Frame:
        return np.asarray(prepared)[np.newaxis]

    def publish(self, result: Frame, workdir: Path) -> Rendered:
        path, (height, width) = workdir / "output.mp4", result.shape[1:3]
        codec = video_codec(width, height, cuda=False)
        with Mp4Encoder(path, width=width, height=height, fps=Fraction(24), codec=codec) as encoder:
            encoder.write(result)
        return Rendered(path=path, media=MediaFacts(width=width, height=height, fps="24/1", frames=1, has_audio=False))

    def ability(self) -> EngineAbility:
        return EngineAbility()

    def free(self) -> None:
        pass


SPEC = ModelSpec(
    name="mirror",
    title="Mirror",
    description="For tests.",
    params=Params,
    inputs=(InputSpec(name="image", kinds=("image",), description="", max_bytes=2**20),),
    timeout_s=60,
    engine="tests.fakes.mirror:MirrorEngine",
    weights_variable="MIRROR_MODEL_PATH",
)
