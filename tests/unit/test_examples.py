"""The examples in Python, as far as they go without a service."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_without_a_key_the_talking_portrait_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VIDEO_API_KEY", raising=False)
    monkeypatch.setattr(sys, "argv", ["talking_portrait.py", "a.jpg", "She smiles", "a.wav", "a.mp4"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / "talking_portrait.py"))
    assert (ended.value.code, "error: set VIDEO_API_KEY" in capsys.readouterr().err) == (2, True)
