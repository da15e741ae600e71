"""Signatures of public functions and classes say what goes in and out."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ('__init__', '__call__', '__getitem__')
ROOMS = ('avatar_jax', 'configs', 'data_pipelines', 'launch')


def untold(source):
    """(function, parameter or '->') of the public functions in a text whose annotation is a bare ``Any``, and (class,
    attribute) of its public classes.

    What a function only hands on (``*args``, ``**options``) may be anything.
    """
    if not re.search(r'(:|->) (typing\.)?Any\b', source):  # most files: parsing all of them takes seconds
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and ast.unparse(part.annotation) in ('Any', 'typing.Any'):
                    yield node.name, ast.unparse(part.target)
        elif isinstance(node, ast.FunctionDef) and (node.name in SHOWN or not node.name.startswith('_')):
            told = [(a.arg, a.annotation) for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            for name, annotation in (*told, ('->', node.returns)):
                if annotation is not None and ast.unparse(annotation) in ('Any', 'typing.Any'):
                    yield node.name, name


def test_no_public_function_takes_or_gives_a_bare_any():
    files = [p for room in ROOMS for p in sorted((ROOT / room).rglob('*.py'))]
    wrong = [(str(p.relative_to(ROOT)), *where) for p in files for where in untold(p.read_text())]
    wrong = [w for w in wrong if not w[0].startswith('avatar_jax/foreign/')]  # files hold anything
    assert len(files) > 400 and wrong == [], 'name the type, or give it an alias that says what it is'


def test_a_bare_any_is_found():
    source = """
def f(a: int, b: Any, *rest: Any, c: dict[str, Any] = None, **more: Any) -> Any: ...
def _g(a: Any) -> Any: ...
class C:
    d: Any = None
    def __init__(self, e: Any): ...
    def __getattr__(self, name: Any) -> Any: ...
"""
    assert sorted(untold(source)) == [('C', 'd'), ('__init__', 'e'), ('f', '->'), ('f', 'b')]
