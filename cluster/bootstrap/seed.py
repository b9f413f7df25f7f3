"""The command of a rented container: :mod:`cluster.bootstrap.process_one` as an argument of Python."""

import ast
import inspect
import re

from cluster.bootstrap import process_one


def command() -> tuple[str, ...]:
    """For an image whose entry point, if it has one, runs what it is given."""
    return ("python3", "-c", source())


def source() -> str:
    """The program without what only its readers need: providers bound the length of arguments."""
    bare = ast.unparse(_Bare().visit(ast.parse(inspect.getsource(process_one))))
    # No text in it spans lines.
    return re.sub(r"^(?: {4})+", lambda indent: " " * (len(indent[0]) // 4), bare, flags=re.MULTILINE)


class _Bare(ast.NodeTransformer):
    """Takes off docstrings and annotations; comments are not in the tree."""

    def visit_Module(self, node: ast.Module) -> ast.Module:
        node.body = _without_docstring(node.body)
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = _without_docstring(node.body)
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    is_docstring = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return body[1:] if is_docstring else body
