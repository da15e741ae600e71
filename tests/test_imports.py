"""No module imports another in a circle, and programs are thin. Which room imports which is a contract of import-linter
(pyproject.toml)."""

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


@pytest.mark.parametrize('file', sorted((ROOT / 'launch').glob('*.py')), ids=lambda file: file.stem)
def test_programs_are_thin(file):
    """A program parses, calls and prints; what it decides or computes is the library's."""
    assert len(file.read_text().splitlines()) <= 100
