"""Kinds of files that no module of the project knows: everything about them is in their objects."""

import re

import numpy as np
import pytest

from avatar_jax.convert.base import Checkpoint, Folder, ForeignFile, NewWeights, has, match, places
from avatar_jax.convert.convert import convert
from avatar_jax.convert.export import export
from avatar_jax.convert.layout import to_torch
from avatar_jax.convert.verify import verify
from avatar_jax.errors import UserError
from avatar_jax.io.foreign import RawFile
from avatar_jax.io.weights import load_weights
from tests.convert import checkpoints as c
from tests.convert import writers as w

TEMPLATE = {'params': {'scale': {'weight': np.zeros((3, 2), np.float32)}}}


def find(tensors):
    return places(tensors, 'scale.weight', lambda flat: has(flat, scale__weight=(2, 3)))


def plan(source, report):
    return [
        NewWeights(
            f'toy{role}.safetensors', 'toy', {'size': 3}, match(source.flat(role), TEMPLATE, report, place, 'toy')
        )
        for role, place in source.places.items()
    ]


def compare(run):
    weight = run.find('toy', 'toy_pair').variables['params']['scale']['weight']
    run.weights({'scale.weight': weight.T})
    run.compare('y', run.golden.inp['x'] @ weight, 1e-6)


def halved(run):
    run.compare('y', run.golden.inp['x'] @ run.find('toy_pair').variables['params']['scale']['weight'] / 2, 1e-6)


def read_folder(path):
    arrays = {'scale.weight': np.loadtxt(path / 'toy.txt', np.float32)}
    return RawFile(path, 'toy-folder', arrays, arrays, sha256='0' * 64, size=1)


TOY = ForeignFile(
    'toy',
    'a toy',
    'toy',
    find,
    plan,
    verify={'toy_run': compare},
    containers=('part',),
    preferred='part_ema',
    folder=Folder('the toy', 'toy.txt', read_folder),
    left_out={'rest/*': 'a rest'},
)
PAIR = ForeignFile(
    'toy_pair',
    'two toys',
    'toy_pair',
    lambda tensors: find(tensors) if len(find(tensors)) > 1 else [],
    plan,
    export=None,
    verify={'toy_run': halved},
    checkpoint=Checkpoint(('left', 'right'), ('toy',), lambda roles: len(roles) == 2, 'has no left and right'),
)
KINDS = (TOY, PAIR)
FLAT = {'scale.weight': np.arange(6, dtype=np.float32).reshape(2, 3)}


def record(folder, factor=1):
    x = np.ones((1, 3), np.float32)
    arrays = {'in/x': x, 'out/y': factor * x @ FLAT['scale.weight'].T, 'param/scale.weight': FLAT['scale.weight']}
    np.savez(folder / 'toy_run.npz', config=np.array('{}'), **arrays)
    return folder / 'toy_run.npz'


def test_there_and_back(tmp_path):
    value = {'state': c.tensors(FLAT), 'rest': {'a': w.tensor(np.ones(2, np.float32))}}
    done = convert(w.write(tmp_path, 'toy.pth', w.torch_zip(value)), tmp_path / 'a', KINDS)
    assert done.kind == 'toy' and done.report.unused == {'rest/a': 'a rest'}
    weights = load_weights(tmp_path / 'a' / 'toy.safetensors')
    assert weights.method == 'toy' and weights.config == {'size': 3}
    assert np.array_equal(to_torch(weights.variables)['scale.weight'], FLAT['scale.weight'])
    convert(export(weights.path, tmp_path / 'b', KINDS), tmp_path / 'c', KINDS)
    assert load_weights(tmp_path / 'c' / 'toy.safetensors').sha256 == weights.sha256
    assert verify(record(tmp_path), tmp_path / 'a', KINDS).passed
    assert not verify(record(tmp_path, 2), tmp_path / 'a', KINDS).passed


def test_several_in_one_file(tmp_path):
    def written(*names):
        value = {name: c.tensors({k: v + i for k, v in FLAT.items()}) for i, name in enumerate(names)}
        return w.write(tmp_path, 'toy.pth', w.torch_zip(value))

    assert convert(written('left', 'right'), tmp_path / 'a', KINDS).kind == 'toy_pair'
    with pytest.raises(UserError, match="holds 2 networks (.*toy at 'a/', toy at 'b/'.*); choose with --prefix"):
        convert(written('a', 'b'), tmp_path / 'b', KINDS)
    with pytest.raises(UserError, match=re.escape('toy.pth: has no left and right')):
        convert(written('a', 'b'), tmp_path / 'b', KINDS, kind='toy_pair')
    with pytest.raises(UserError, match=re.escape('toy.pth: has no left and right')):
        convert(written('a', 'b'), tmp_path / 'b', (PAIR,))
    convert(written('part', 'part_ema'), tmp_path / 'b', KINDS, kind='toy', allow=['part/*'])
    stored = load_weights(tmp_path / 'b' / 'toy.safetensors').variables
    assert np.array_equal(to_torch(stored)['scale.weight'], FLAT['scale.weight'] + 1)


def test_flat_files_name_the_containers(tmp_path):
    path = w.write(tmp_path, 'x.safetensors', w.safetensors({'part.scale.weight': FLAT['scale.weight']}))
    assert convert(path, tmp_path / 'a', KINDS).report.mapped.keys() == {'part/scale.weight'}


def test_folders(tmp_path):
    (tmp_path / 'given').mkdir()
    with pytest.raises(UserError, match='a folder without toy.txt; give a file, or the folder of the toy'):
        convert(tmp_path / 'given', tmp_path / 'a', KINDS)
    with pytest.raises(UserError, match='is a folder'):
        convert(tmp_path / 'given', tmp_path / 'a', (PAIR,))
    np.savetxt(tmp_path / 'given' / 'toy.txt', FLAT['scale.weight'])
    assert convert(tmp_path / 'given', tmp_path / 'a', KINDS).kind == 'toy'


def test_records_are_compared_with_what_is_there(tmp_path):
    """Two kinds speak of one record: the one whose weights are there repeats the computation."""
    from avatar_jax.io.weights import save_weights

    variables = {'params': {'scale': {'weight': FLAT['scale.weight'].T}}}
    for method in ('toy_pair', 'toy'):
        save_weights(tmp_path / f'{method}.safetensors', variables, method=method, config={}, provenance={})
        assert verify(record(tmp_path, 1 if method == 'toy' else 0.5), tmp_path, KINDS).passed
    with pytest.raises(UserError, match="has nothing of 'toy', which toy_run.npz is about; it has no weight files"):
        (tmp_path / 'empty').mkdir()
        verify(tmp_path / 'toy_run.npz', tmp_path / 'empty', KINDS)
    with pytest.raises(UserError, match="'other' is of no kind that can be compared; .* one of toy_run"):
        np.savez(tmp_path / 'other.npz', **{'out/y': np.ones(2), 'config': np.array('{}')})
        verify(tmp_path / 'other.npz', tmp_path, KINDS)
