"""What ``name=value`` means, for models that do not exist yet as well."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.cli.piped import NothingPiped
from serve_app.cli.submission import InvalidArguments, interpret, parse
from serve_app.client import InputInfo, ModelInfo


def an_input(name: str, *kinds: str) -> InputInfo:
    return {"name": name, "kinds": list(kinds), "description": "", "max_bytes": 1, "max_seconds": None}


def nothing(_: int) -> Path:
    raise NothingPiped("nothing is piped in")


DUB: ModelInfo = {
    "model": "dub",
    "title": "",
    "description": "",
    "inputs": [an_input("face", "video", "image"), an_input("voice", "audio", "video")],
    "params_schema": {"properties": {"pads": {"type": "array"}}},
}


@pytest.mark.parametrize(
    ("value", "schema", "meant"),
    [
        ("3", {"type": "integer"}, 3),
        ("3", {"type": "string"}, "3"),
        ("a cat", {"type": "integer"}, "a cat"),
        ("null", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
        ("null", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "null"),
        ("[0, 10, 0, 0]", {"type": "array"}, [0, 10, 0, 0]),
        ("true", {"type": ["boolean", "null"]}, True),
        ("1", {"$ref": "#/$defs/Mode"}, "1"),
        ("1", {"allOf": [{"$ref": "#/$defs/Box"}]}, 1),
        ('{"a": 1}', {}, {"a": 1}),
    ],
)
def test_values_have_the_type_of_the_schema(value: str, schema: dict[str, Any], meant: object) -> None:
    assert parse(value, schema, {"Mode": {"type": "string", "enum": ["1"]}, "Box": {"type": "integer"}}) == meant


@pytest.mark.parametrize(("face", "voice"), [("me.mp4", "voice.wav"), ("me.png", "film.mp4"), ("me", "unknown")])
def test_a_file_is_uploaded_as_what_its_input_is_for_whatever_it_is(tmp_path: Path, face: str, voice: str) -> None:
    (tmp_path / face).touch()
    (tmp_path / voice).touch()

    values = {"face": str(tmp_path / face), "voice": str(tmp_path / voice), "pads": "[1]"}
    files, fields = interpret([DUB], "dub", values, (), nothing)

    assert files == {"video": tmp_path / face, "audio": tmp_path / voice}
    assert fields == {"pads": [1]}


def test_a_kind_that_another_input_is_named_after_is_left_to_it(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.touch()
    inputs = [an_input("sound", "video", "audio"), an_input("video", "video"), an_input("cover", "video")]

    files, _ = interpret([{**DUB, "inputs": inputs}], "dub", {"sound": str(film), "video": str(film)}, (), nothing)

    assert files == {"audio": film, "video": film}
    with pytest.raises(InvalidArguments, match="cover: give a URL"):
        interpret([{**DUB, "inputs": inputs}], "dub", {"cover": str(film)}, (), nothing)


def test_what_is_left_out_is_null_beside_what_is_uploaded(tmp_path: Path) -> None:
    voice = tmp_path / "voice.wav"
    voice.touch()
    optional = {**an_input("face", "image"), "optional": True}
    model: ModelInfo = {**DUB, "inputs": [optional, an_input("voice", "audio")]}  # type: ignore[list-item]

    assert interpret([model], "dub", {"voice": str(voice)}, ["face"], nothing) == ({"audio": voice}, {"face_url": None})
    with pytest.raises(InvalidArguments, match="give face=FILE"):
        interpret([model], "dub", {"voice": str(voice)}, (), nothing)


def test_two_files_of_one_kind_need_a_url(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.touch()
    model: ModelInfo = {**DUB, "inputs": [an_input("face", "video", "image"), an_input("scene", "video")]}

    with pytest.raises(InvalidArguments, match="only one video"):
        interpret([model], "dub", {"face": str(clip), "scene": str(clip)}, (), nothing)


def test_one_input_may_be_piped_in(tmp_path: Path) -> None:
    asked = []

    def read(max_bytes: int) -> Path:
        asked.append(max_bytes)
        path = tmp_path / "piped"
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
        return path

    voice = tmp_path / "voice.wav"
    voice.touch()
    files, _ = interpret([DUB], "dub", {"face": "-", "voice": str(voice)}, (), read)

    assert files == {"video": tmp_path / "piped", "audio": voice}
    assert asked == [1]
    with pytest.raises(InvalidArguments, match="only one input can be -, what is piped in: face, voice"):
        interpret([DUB], "dub", {"face": "-", "voice": "-"}, (), read)
    with pytest.raises(InvalidArguments, match="face=-: nothing is piped in"):
        interpret([DUB], "dub", {"face": "-"}, (), nothing)
    # A parameter may well be a dash.
    assert interpret([{**DUB, "inputs": []}], "dub", {"pads": "-"}, (), nothing)[1] == {"pads": "-"}
