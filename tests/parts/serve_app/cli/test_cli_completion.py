"""What shells are offered, by the protocol in which their scripts ask."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.cli import app, completion
from tests.parts.serve_app.cli.invocation import Run
from tests.parts.serve_app.cli.live_service import API_KEY, LiveService

LIMIT_S = 60
#: What a shell might run if it were offered it. Of the first, typer escapes the dollar and not the backslash.
CODE = (
    r"\$(touch run)",
    "$(touch run)",
    r"\`touch run\`",
    "`touch run`",
    r"\";touch run;\"",
    "';touch run;'",
    "x\ntouch run",
)
PROGRAM = f"""
from serve_app.cli import completion, main

completion.ANSWER_S = {LIMIT_S}
main()
"""
#: As a terminal does with what the script has answered at the Tab key.
TAB = """
eval "$(_VIDEO_API_COMPLETE=source_bash video-api)"
COMP_WORDS=(video-api submit lt) COMP_CWORD=2
_video_api_completion video-api lt submit
printf '%s\\n' "${COMPREPLY[@]}"
"""


def offered(line: str, url: str, shell: str = "bash", key: str = API_KEY) -> list[str]:
    """What comes after this beginning of a command. Nothing else may be said."""
    words = f"video-api {line}"
    asked = {
        "_VIDEO_API_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "VIDEO_API_URL": url,
        "VIDEO_API_KEY": key,
    }
    done = CliRunner().invoke(app, [], prog_name="video-api", env=asked)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    return [line for line in done.stdout.splitlines() if line]


class Stranger:
    """A service that answers with what nobody asked for, and writes down what it was sent."""

    def __init__(self, answers: Mapping[str, object]) -> None:
        self.sent: list[str] = []
        stranger = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stranger.sent.append(f"{self.path} {self.headers}")
                body = json.dumps(answers.get(self.path.partition("?")[0], {})).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> "Stranger":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def hostile() -> Iterator[Stranger]:
    """Its names and titles are code."""
    listed = [{"job_id": code, "model": "cat", "status": "queued"} for code in CODE]
    listed += [{"job_id": f"cat-{n}", "model": code, "status": "queued"} for n, code in enumerate(CODE)]
    found = [{"model": code, "title": "cat"} for code in (*CODE, "--key")]
    found += [{"model": f"cat.{n}", "title": f"Cat, {code}"} for n, code in enumerate(CODE)]
    page = {"data": listed, "last_id": None, "has_more": False}
    with Stranger({"/api/v1/jobs": page, "/api/v1/models": found}) as stranger:
        yield stranger


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does many things answers later than somebody who types waits."""
    monkeypatch.setattr(completion, "ANSWER_S", LIMIT_S)


@pytest.fixture
def script(folder: Path) -> Path:
    """A folder with ``video-api`` in it."""
    program = folder / "bin" / "video-api"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{PROGRAM}")
    program.chmod(0o755)
    return program.parent


@pytest.fixture
def silent() -> Iterator[str]:
    """Where somebody takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_models_of_the_service_are_offered(service: LiveService) -> None:
    assert offered("submit ", service.url) == ["ltx2", "wav2lip"]
    assert offered("submit w", service.url) == ["wav2lip"]
    assert offered("list --model l", service.url) == ["ltx2"]


@pytest.mark.parametrize("where", ["--url {0} submit l", "submit --url={0} l"])
def test_the_options_of_the_line_say_where_to_ask(service: LiveService, where: str) -> None:
    assert offered(where.format(service.url), "http://127.0.0.1:1") == ["ltx2"]


def test_jobs_are_offered_to_the_commands_that_can_do_something_with_them(
    run: Run, service: LiveService, submitted: Callable[[str], str]
) -> None:
    going, cancelled = submitted("hang"), submitted("hang")
    run("cancel", cancelled)

    assert offered("status ", service.url) == [cancelled, going]
    assert offered(f"status {going[:12]}", service.url) == [going]
    assert offered("wait ", service.url) == offered("cancel ", service.url) == [going]
    assert offered("retry ", service.url) == offered("delete ", service.url) == [cancelled]
    assert offered("download ", service.url) == []


@pytest.mark.parametrize(
    ("shell", "answer"),
    [
        ("zsh", ['_arguments \'*: :(("wav2lip":"Wav2Lip lip sync"))\'']),
        ("fish", ["wav2lip\tWav2Lip lip sync"]),
    ],
)
def test_zsh_and_fish_are_told_what_each_is(service: LiveService, shell: str, answer: list[str]) -> None:
    assert offered("submit w", service.url, shell) == answer


@pytest.mark.parametrize("line", ["submit ", "status "])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_nothing_is_offered_that_a_shell_could_read_as_code(hostile: Stranger, shell: str, line: str) -> None:
    answer = "\n".join(offered(line, hostile.url, shell))

    names = [f"cat{'.' if line == 'submit ' else '-'}{number}" for number in range(len(CODE))]
    assert re.findall(r"cat[.-]\d", answer) == names
    bare = answer.removeprefix("_arguments '*: :((").removesuffix("))'")
    form = {"bash": r"[\w.-]+\n?", "zsh": r'"[\w.-]+":"[\w .,()-]+"\s?', "fish": r"[\w.-]+\t[\w .,()-]+\n?"}
    assert re.fullmatch(f"({form[shell]})+", bare), answer
    assert "--key" not in answer


def test_nothing_runs_of_what_zsh_evaluates_twice(hostile: Stranger, folder: Path) -> None:
    """Its script does, and within that ``_arguments`` what is in its double parentheses; bash reads them alike."""
    answer = " ".join(offered("status ", hostile.url, "zsh"))
    evaluated = """
    _arguments() { words=${1#*((}; eval "words=(${words%))})"; printf '%s\\n' "${words[@]}"; }
    eval $ANSWER
    """
    environment = {**os.environ, "ANSWER": answer}
    done = subprocess.run(
        ["bash", "--norc", "-c", evaluated], env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )

    assert not (folder / "run").exists()
    assert (done.stderr, len(done.stdout.splitlines())) == ("", len(CODE))


def test_the_folder_has_no_say_in_whom_the_tab_key_asks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret-token")
    with Stranger({"/api/v1/models": [{"model": "cat", "title": "cat"}]}) as stranger:
        (folder / ".env").write_text(f"VIDEO_API_URL={stranger.url}/${{SECRET_TOKEN}}\nVIDEO_API_KEY=mine\nPORT=1\n")
        offered("submit ", "", key="secret-key")
        assert stranger.sent == []
        # Who names it asks it.
        assert offered("submit ", stranger.url) == ["cat"]


def test_where_nobody_can_be_asked_nothing_is_offered_and_nothing_said(
    service: LiveService, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert offered("submit ", "http://127.0.0.1:1") == []
    assert offered("submit ", "nonsense") == []
    assert offered("wait ", "http://host:port") == []
    assert offered("wait ", service.url, key="wrong") == []
    monkeypatch.setattr(completion, "ANSWER_S", 0.1)
    assert offered("submit ", silent) == []


def test_bash_completes_by_the_script_that_is_shown(service: LiveService, script: Path) -> None:
    # A command would warn of it.
    Path(".env").write_text("this is = no 'variable\n")
    environment = {
        **os.environ,
        "PATH": f"{script}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "VIDEO_API_URL": service.url,
        "VIDEO_API_KEY": API_KEY,
        "HOME": str(script.parent),
    }

    def bash(typed: str) -> str:
        done = subprocess.run(
            ["bash", "--norc"], input=typed, env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert bash(TAB) == "ltx2\n"
    assert "complete -o default -F _video_api_completion video-api" in bash("video-api --show-completion\n")
    assert "bash completion installed" in bash("video-api --install-completion\n")
    assert "video-api.sh" in (script.parent / ".bashrc").read_text()
