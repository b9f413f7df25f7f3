"""What shows a video on this machine: the program that ``BROWSER`` names, or the platform's own."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from serve_app.cli.terminal import UsageProblem

#: Programs that open a file or a URL with whatever the user has chosen for it.
_PROGRAMS = ("open",) if sys.platform == "darwin" else ("xdg-open", "wslview")
#: Seconds in which an opener that can't open anything says so. A player may be the opener itself, and play on.
_SAID_S = 5.0
#: With a host, and of all else only what addresses of files need: nothing by which a shell behind the opener could
#: quote or expand. ``&`` is needed.
_WEB = re.compile(
    r"https?://([0-9A-Za-z][0-9A-Z_a-z.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?([/?#][#%&+,./0-9:=?@A-Z_a-z~-]*)?"
)
#: What may stand around ``%s`` in an argument. Whatever else does makes it code, and what replaces ``%s`` part of it.
_PLAIN = re.compile(r"[\w./:=@,+?&-]*")

#: Shows a file of this machine, or what a link of a service names. Returns what went wrong, or nothing.
Open = Callable[[Path | str], str]


def opener(environment: Mapping[str, str] = os.environ) -> Open:
    """Raises UsageProblem where nothing here can open anything, or ``BROWSER`` would have it read as code.

    A link is a service's word: only what is plainly on the web is opened, no file of this machine, no other program's
    scheme, and nothing that a program could take for an option.
    """
    show = _program(environment)

    def open_it(target: Path | str) -> str:
        if isinstance(target, Path):
            return show(str(target.absolute()))
        return show(target) if _WEB.fullmatch(target) else "the service names no http(s) link"

    return open_it


def _program(environment: Mapping[str, str]) -> Callable[[str], str]:
    for named in environment.get("BROWSER", "").split(os.pathsep):
        try:
            words = shlex.split(named)
        except ValueError as error:
            raise UsageProblem(f"--open: BROWSER: {named}: {error}") from None
        if words and shutil.which(words[0]):
            if not all(_PLAIN.fullmatch(word.replace("%s", "")) for word in words if "%s" in word):
                raise UsageProblem(
                    f"--open: BROWSER: {named}: %s has to be a word of its own, or what is opened is read as code;"
                    """ e.g. sh -c 'player "$0"' %s"""
                )
            return _Program(words)
    if sys.platform == "win32":
        return _start
    for program in _PROGRAMS:
        if shutil.which(program):
            return _Program([program])
    raise UsageProblem(
        f"--open: nothing here can open a video: there is no {_PROGRAMS[0]}, and BROWSER names no program."
        " Leave it out; -o PATH saves the video"
    )


class _Program:
    def __init__(self, words: list[str]) -> None:
        self._words = words

    def __call__(self, target: str) -> str:
        # As in other programs, ``%s`` is where it goes, or else the end.
        given = [word.replace("%s", target) for word in self._words]
        command = given if given != self._words else [*given, target]
        quiet = subprocess.DEVNULL
        try:
            # A session of its own: Ctrl-C in this terminal is not for a player.
            program = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        except OSError as error:
            return str(error)
        try:
            status = program.wait(_SAID_S)
        except subprocess.TimeoutExpired:
            return ""
        return f"{self._words[0]} ended with status {status}" if status else ""


def _start(target: str) -> str:
    if sys.platform == "win32":
        try:
            os.startfile(target)  # noqa: S606
        except OSError as error:
            return str(error)
    return ""
