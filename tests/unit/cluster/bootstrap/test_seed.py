"""The container's command: small enough for every provider, and still the program that is tested."""

import ast
import inspect

import pytest

from cluster.bootstrap import process_one, seed
from cluster.mesh.identity import HubIdentity
from cluster.mesh.wire import Content, Fetch, Reason, Refused, encode


def test_it_fits_beside_other_arguments() -> None:
    # Vast.ai takes 4,096 characters of arguments and start-up script together.
    assert sum(map(len, seed.command())) <= 3500
    assert seed.command()[:2] == ("python3", "-c")
    # Nor more than 255 in a value of the environment.
    assert len(HubIdentity.derived(bytes(32)).invitation().token()) <= 255


def test_it_is_the_program_without_what_only_readers_need() -> None:
    bare, full = ast.parse(seed.source()), ast.parse(inspect.getsource(process_one))

    def calls(program: ast.Module) -> list[str]:
        return sorted(ast.unparse(node) for node in ast.walk(program) if isinstance(node, ast.Call))

    assert calls(bare) == calls(full)
    for node in ast.walk(bare):
        if isinstance(node, ast.FunctionDef | ast.Module):
            assert ast.get_docstring(node) is None
        if isinstance(node, ast.FunctionDef):
            assert node.returns is None
            assert not any(argument.annotation for argument in node.args.args)


def test_its_frames_are_the_protocol_s() -> None:
    """It has no room for ``cluster.mesh.wire``."""
    secret = bytes(range(32))
    assert process_one.question(secret, "install.pyz") == encode(Fetch(secret, 0, "install.pyz"))
    assert process_one.content(encode(Content(3)) + b"abc") == b"abc"


@pytest.mark.parametrize("reason", Reason)
def test_a_refusal_is_final_if_the_protocol_says_so(reason: Reason) -> None:
    with pytest.raises(ValueError if reason.final else OSError):
        process_one.content(encode(Refused(reason)))


@pytest.mark.parametrize("answer", [b"", b"vm", encode(Content(3)), encode(Content(3)) + b"ab", b"vm\x01\x0b\x00\x01"])
def test_an_answer_that_was_cut_is_asked_for_again(answer: bytes) -> None:
    with pytest.raises(OSError, match="now"):
        process_one.content(answer)
