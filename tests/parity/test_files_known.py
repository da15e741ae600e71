"""Every reference file of a folder whose system is built belongs to a test, so that none is passed over in silence."""

import importlib
from pathlib import Path

import pytest

from tests.parity import golden as g

# Kinds of systems that are not built yet. A folder that is not named in FOLDERS is not built at all.
LATER = {
    'eg3d': (),
    'otavatar': (),
    'face_models': (),
    'gpavatar': (),
    'hfagp': (),
    'metrics': (),
    'blocks': (),
}

# Kinds that a test outside this folder compares.
ELSEWHERE = {'eg3d': ('network_pickle_sample',)}  # tests/convert/test_reader.py


def _load_all_tests() -> None:
    for path in sorted(Path(__file__).parent.glob('test_*.py')):
        importlib.import_module(f'tests.parity.{path.stem}')


@pytest.mark.parametrize('folder', sorted(LATER))
def test_every_file_has_a_test(folder):
    _load_all_tests()
    later = LATER[folder] + ELSEWHERE.get(folder, ())
    unknown = [
        path.name
        for path in g.golden_files(folder)
        if g.kind_of(folder, path.stem) is None
        and not any(path.stem == k or path.stem.startswith(k + '_') for k in later)
    ]
    assert not unknown, f'{folder}: no test knows {", ".join(unknown)}'


@pytest.mark.parametrize('folder', sorted(LATER))
def test_nothing_built_is_called_later(folder):
    _load_all_tests()
    both = sorted(set(LATER[folder]) & set(g.KINDS.get(folder, {})))
    assert not both, f'{folder}: {both} have a test and are listed as not built'


def test_reference_files_are_there():
    assert any(g.golden_files(folder) for folder in LATER), f'{g.root()}: no reference files'


def test_a_file_of_unknown_kind_is_noticed(tmp_path, monkeypatch):
    _load_all_tests()
    (tmp_path / 'eg3d').mkdir()
    (tmp_path / 'eg3d' / 'something_else.npz').write_bytes(b'')
    monkeypatch.setenv('AVATAR_GOLDEN', str(tmp_path))
    with pytest.raises(AssertionError, match='something_else'):
        test_every_file_has_a_test('eg3d')
