"""No module imports another in a circle, programs are thin, and nothing is written that nobody names.

Which room imports which is a contract of import-linter (pyproject.toml).
"""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize('package', ['avatar_jax', 'launch', 'data_pipelines'])
def test_there_is_no_circle(package):
    grimp = pytest.importorskip('grimp')
    graph = grimp.build_graph(package, exclude_type_checking_imports=True)
    left = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    while free := [module for module, imported in left.items() if not imported]:  # those that wait for nobody
        for module in free:
            del left[module]
        for imported in left.values():
            imported.difference_update(free)
    assert not left, f'in circles, or above one: {", ".join(sorted(left))}'


@pytest.mark.parametrize('file', sorted((ROOT / 'launch').rglob('*.py')), ids=lambda file: file.stem)
def test_programs_are_thin(file):
    """A program parses, calls and prints; what it decides or computes is the library's."""
    assert len(file.read_text().splitlines()) <= 100


def defined(source):
    """Names of the functions and classes that a text defines, and of the constants of its module. Those that a
    decorator takes, and Python's own, are left out.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list:
            yield node.name
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def test_everything_is_named_somewhere():
    """Besides where it is defined: in code, a test, a document or a notebook."""
    code = {
        p: p.read_text()
        for room in ('avatar_jax', 'configs', 'data_pipelines', 'launch', 'notebooks', 'tests')
        for p in sorted((ROOT / room).rglob('*.py'))
    }
    documents = [p.read_text() for p in (ROOT / 'README.md', *(ROOT / 'docs').glob('*.md'))]
    words = Counter(re.findall(r'\w+', ' '.join([*code.values(), *documents])))
    unread = [
        f'{path.relative_to(ROOT)}: {name}'
        for path, text in code.items()
        if 'tests' not in path.parts
        for name in defined(text)
        if words[name] == 1 and not name.startswith(('__', 'visit_'))
    ]
    assert not unread, 'remove what nobody reads'


def test_what_nobody_names_would_be_found():
    source = 'A = 1\ndef f(): ...\n@cache\ndef g(): ...\nclass C:\n    def method(self): ...\n'
    assert sorted(defined(source)) == ['A', 'C', 'f', 'method']
