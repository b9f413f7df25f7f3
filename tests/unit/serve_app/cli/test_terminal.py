"""What a terminal and a log get to see."""

from io import StringIO

from rich.console import Console

from serve_app.cli.progress import showing_steps
from serve_app.cli.terminal import Session

WIDTH = 20


def terminal(**options: bool) -> tuple[Console, StringIO]:
    written = StringIO()
    return Console(file=written, width=WIDTH, highlight=False, **options), written


def test_a_line_to_copy_is_not_folded() -> None:
    out, written = terminal(force_terminal=True)
    err, _ = terminal()
    line = "LTX2_WEIGHTS='https://store/" + "x" * 10 * WIDTH + "'"
    Session(address=lambda: ("", ""), json=False, out=out, err=err).show({}, line)
    assert written.getvalue().splitlines() == [line]


def test_a_log_has_a_line_for_each_step_of_a_transfer_and_not_for_each_piece() -> None:
    console, written = terminal()
    with showing_steps(console) as show:
        for step in ("fetching a [large] file (1 of 2)", "storing it (1 of 2)"):
            for done in range(101):
                show(step, done, 100)
        show("storing an empty one (2 of 2)", 0, 0)
    assert written.getvalue().splitlines() == [
        "fetching a [large] file (1 of 2) 0%",
        "storing it (1 of 2) 0%",
        "storing an empty one (2 of 2) 0%",
    ]


def test_a_terminal_shows_the_step_and_clears_it_at_the_end() -> None:
    console, written = terminal(force_terminal=True)
    console.width = 100
    with showing_steps(console) as show:
        show("fetching a [large] file (1 of 2)", 50, 100)
        show("storing it (2 of 2)", 50, 100)
    shown = written.getvalue()
    assert "storing it (2 of 2)" in shown
    assert "50/100 bytes" in shown
