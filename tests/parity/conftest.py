"""Runs each parity test once per reference file of its kinds, at full float32 precision."""

import jax
import pytest

from tests.parity import golden as g


def pytest_generate_tests(metafunc):
    """Gives every test marked with ``@handles`` one case per file."""
    kinds = getattr(metafunc.function, 'golden_kinds', None)
    if kinds is None or 'golden' not in metafunc.fixturenames:
        return
    folder = metafunc.function.golden_folder
    paths = [p for p in g.golden_files(folder) if g.kind_of(folder, p.stem) in kinds]
    metafunc.parametrize('golden', paths, ids=[f'{folder}/{p.stem}' for p in paths], indirect=True)


@pytest.fixture
def golden(request):
    """The reference file of this case."""
    return g.load(request.param)


@pytest.fixture(autouse=True)
def highest_precision():
    """Reference numbers are float32: no reduced-precision matrix passes."""
    with jax.default_matmul_precision('highest'):
        yield
