"""Weight files: exact round trips, half-precision storage, verification, clear refusals."""

import dataclasses
import hashlib
import itertools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.io import tensor_files, weights


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 4
    sizes: tuple[int, ...] = (1, 2)


def tree():
    rng = np.random.default_rng(0)
    return {
        'params': {
            'b8': {
                'conv0': {'weight': rng.normal(size=(3, 3, 8, 32)).astype(np.float32), 'bias': np.zeros(4, np.float32)}
            },
            'net': {'0': {'weight': rng.normal(size=(5, 7)).astype(np.float32)}},
            'scalar': np.float32(0.25),
        },
        'noise': {'b8': {'noise_const': rng.normal(size=(8, 8)).astype(np.float32)}},
        'counts': {'steps': np.array([1, 2], np.int32), 'on': np.array(True)},
    }


def save(path, variables=None, **options):
    options = {'method': 'eg3d', 'config': Config(), 'provenance': {'seed': 3, 'command': 'train'}, **options}
    return weights.save_weights(path, tree() if variables is None else variables, **options)


def test_round_trip_is_exact(tmp_path):
    digest = save(tmp_path / 'new' / 'a.safetensors')
    back = weights.load_weights(tmp_path / 'new' / 'a.safetensors', method='eg3d', template=tree())
    jax.tree.map(np.testing.assert_array_equal, back.variables, tree())
    assert jax.tree.map(lambda x: np.asarray(x).dtype, back.variables) == jax.tree.map(
        lambda x: np.asarray(x).dtype, tree()
    )
    assert back.sha256 == digest and len(digest) == 64
    assert back.config == {'width': 4, 'sizes': [1, 2]} and back.provenance == {'seed': 3, 'command': 'train'}
    weights.check_config('x', back.config, Config())
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['a.safetensors']


def test_digest_depends_on_names_and_numbers(tmp_path):
    path = tmp_path / 'a.safetensors'
    digest = save(path)
    assert save(path) == digest
    assert save(path, config=Config(width=8)) == digest  # the digest is that of the numbers
    changed = tree()
    changed['params']['scalar'] = np.float32(0.250001)
    renamed = tree()
    renamed['params']['other'] = renamed['params'].pop('scalar')
    assert len({digest, save(path, changed), save(path, renamed)}) == 3


def test_other_programs_can_read_the_tensors(tmp_path):
    """The file follows the safetensors format: eight bytes of header length, JSON, raw data without gaps."""
    save(tmp_path / 'a.safetensors')
    content = (tmp_path / 'a.safetensors').read_bytes()
    length = int.from_bytes(content[:8], 'little')
    header = json.loads(content[8 : 8 + length])
    assert all(isinstance(v, str) for v in header.pop('__metadata__').values())
    spans = sorted(tuple(e['data_offsets']) for e in header.values())
    assert spans[0][0] == 0 and spans[-1][1] == len(content) - 8 - length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    entry = header['params.net.0.weight']
    start, stop = entry['data_offsets']
    found = np.frombuffer(content[8 + length + start : 8 + length + stop], '<f4').reshape(entry['shape'])
    np.testing.assert_array_equal(found, tree()['params']['net']['0']['weight'])


def test_the_digest_does_not_depend_on_the_order_of_names(tmp_path):
    variables = tree()
    again = {k: dict(reversed(v.items())) for k, v in reversed(variables.items())}
    assert save(tmp_path / 'a.safetensors') == save(tmp_path / 'b.safetensors', again)
    # That of a file whose tensors are in another order is over their places in it, as it always was.
    value = np.arange(4, dtype=np.float32)
    table = {n: {'dtype': 'F32', 'shape': [2], 'data_offsets': [8 * i, 8 * i + 8]} for i, n in enumerate(('z', 'a'))}
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode() + value.tobytes()).hexdigest()
    record = {'format': 1, 'method': 'x', 'config': {}, 'provenance': {}, 'widened': [], 'sha256': digest}
    header = json.dumps({'__metadata__': {'avatar_jax': json.dumps(record)}, **table}).encode()
    header += b' ' * (-len(header) % 8)
    (tmp_path / 'c.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header + value.tobytes())
    back = weights.load_weights(tmp_path / 'c.safetensors')
    assert back.sha256 == digest and back.variables['z'].tolist() == [0, 1] and back.variables['a'].tolist() == [2, 3]


def test_shipped_files_keep_their_digests(tmp_path):
    """Numbers that are saved again have the same one, and the files of the package have it in this order."""
    stored = weights.load_weights(weights.shipped('heads128'))
    options = {'method': stored.method, 'config': stored.config, 'provenance': stored.provenance}
    again = weights.save_weights(tmp_path / 'a.safetensors', stored.variables, storage='float16', **options)
    assert again == stored.sha256 == weights.load_weights(tmp_path / 'a.safetensors').sha256


def test_arrays_of_any_layout_in_files_that_others_may_read(tmp_path):
    rng = np.random.default_rng(1)
    value = rng.normal(size=(3, 4, 5)).astype(np.float32)
    arrays = {
        'turned': value.T,
        'part': value[::-1, 1:3, ::2],
        'wide': np.broadcast_to(np.float32(2), (2, 3)),
        'none': np.zeros((0, 3), np.float32),
        'single': np.float32(3),
    }
    digest = save(tmp_path / 'a.safetensors', {'params': arrays})
    back = weights.load_weights(tmp_path / 'a.safetensors')
    jax.tree.map(np.testing.assert_array_equal, back.variables['params'], arrays)
    assert all(v.dtype == np.float32 for v in back.variables['params'].values()) and back.sha256 == digest
    (tmp_path / 'plain').write_bytes(b'')
    assert (tmp_path / 'a.safetensors').stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_another_order_of_the_library_is_found_out(tmp_path, monkeypatch):
    right = tensor_files.layout
    arrays = {'a': np.ones(2, np.float32), 'b': np.ones(3, np.int32), 'c': np.ones(4, np.float16)}
    variables = {'params': arrays}
    digest = save(tmp_path / 'a.safetensors', variables)
    monkeypatch.setattr(
        tensor_files, 'layout', lambda arrays: {name: {'data_offsets': [0, 0]} for name in right(arrays)}
    )
    assert save(tmp_path / 'b.safetensors', variables) == digest
    assert weights.load_weights(tmp_path / 'b.safetensors').sha256 == digest
    monkeypatch.undo()
    # What this project expects is what the library does, for every type.
    arrays = {f'{k}{dtype}': np.ones(3, dtype) for dtype in tensor_files.CODES for k in ('b', 'a.b', 'a_b', 'B')}
    tensor_files.write(tmp_path / 'c.safetensors', arrays, lambda table: {})
    assert tensor_files.read(tmp_path / 'c.safetensors').table == tensor_files.layout(arrays)


def test_a_full_disk_is_told_in_words(tmp_path):
    code = (
        'import resource, sys\nimport numpy as np\nfrom avatar_jax.io import weights\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n'
        "weights.save_weights(sys.argv[1], {'a': np.zeros(10**6)}, method='x', config={}, provenance={})"
    )
    done = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path / 'a.safetensors')], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and 'UserError' in done.stderr and 'larger than the system allows' in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_half_precision_storage(tmp_path):
    variables = tree()
    variables['params']['huge'] = np.full((40, 40), 1e6, np.float32)  # beyond float16
    save(tmp_path / 'full.safetensors', variables)
    save(tmp_path / 'half.safetensors', variables, storage='float16')
    full, half = (tmp_path / n for n in ('full.safetensors', 'half.safetensors'))
    assert full.stat().st_size - half.stat().st_size > 2 * 3 * 3 * 8 * 32 - 100
    back = weights.load_weights(half, template=variables).variables
    assert back['params']['b8']['conv0']['weight'].dtype == np.float32
    np.testing.assert_allclose(
        back['params']['b8']['conv0']['weight'], variables['params']['b8']['conv0']['weight'], rtol=5e-4, atol=1e-7
    )
    for exact in ('huge', 'scalar'):
        np.testing.assert_array_equal(back['params'][exact], variables['params'][exact])
    np.testing.assert_array_equal(back['params']['net']['0']['weight'], variables['params']['net']['0']['weight'])
    np.testing.assert_array_equal(back['counts']['steps'], [1, 2])


def test_bfloat16_and_jax_arrays(tmp_path):
    value = jax.numpy.arange(6, dtype=jax.numpy.bfloat16).reshape(2, 3) / 3
    save(tmp_path / 'a.safetensors', {'params': {'w': value}})
    back = weights.load_weights(tmp_path / 'a.safetensors').variables['params']['w']
    assert back.dtype == value.dtype
    np.testing.assert_array_equal(back.astype(np.float32), np.asarray(value, np.float32))


def test_what_is_not_saved(tmp_path):
    path = tmp_path / 'a.safetensors'
    with pytest.raises(ValueError, match='params.w: has NaN'):
        save(path, {'params': {'w': np.array([1.0, np.nan], np.float32)}})
    with pytest.raises(ValueError, match='without dots'):
        save(path, {'params': {'a.b': np.zeros(1)}})
    with pytest.raises(ValueError, match='cannot be stored'):
        save(path, {'params': {'w': np.array(['text'])}})
    with pytest.raises(ValueError, match='storage'):
        save(path, storage='int4')
    with pytest.raises(UserError, match='named'):
        save(tmp_path / 'a.bin')
    assert list(tmp_path.iterdir()) == []


def own_record(text):
    """A file without tensors and with any record of this project."""
    header = json.dumps({'__metadata__': {'avatar_jax': text}}).encode()
    return len(header).to_bytes(8, 'little') + header


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / 'a.safetensors'
    save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    edited = whole.replace(b'params.scalar', b'params.skalar')
    foreign = json.dumps({'w': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}}).encode()
    foreign = len(foreign).to_bytes(8, 'little') + foreign + bytes(4)
    for content, message in [
        (whole[:-3], 'damaged or incomplete'),
        (whole[: len(whole) // 2], 'damaged or incomplete'),
        (whole[:40], 'damaged or incomplete'),
        (bytes(flipped), 'damaged or incomplete'),
        (edited, 'damaged or incomplete'),
        (foreign, 'another program'),
        (own_record('[1]'), 'damaged or incomplete'),
        (own_record('{}'), 'damaged or incomplete'),
        (own_record('[' * 100_000), 'damaged or incomplete'),
        (own_record('{"format": 2}'), 'has format 2'),
        (b'hello, no weights here', 'not a weight file'),
        (b'', 'empty'),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            weights.load_weights(path)
        assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_wrong_method_shape_and_names(tmp_path):
    path = tmp_path / 'a.safetensors'
    save(path)
    with pytest.raises(UserError, match="weights of 'eg3d', but 'otavatar'"):
        weights.load_weights(path, method='otavatar')
    template = tree()
    template['params']['net']['0']['weight'] = jax.ShapeDtypeStruct((5, 8), np.float32)
    template['params']['extra'] = np.zeros(2)
    del template['noise']
    with pytest.raises(UserError) as caught:
        weights.load_weights(path, template=template)
    text = str(caught.value)
    assert 'params.extra is missing' in text and 'noise.b8.noise_const is not part' in text
    assert 'params.net.0.weight has shape (5, 7), expected (5, 8)' in text


def test_config_differences_are_named():
    weights.check_config('f', {'a': {'b': (1, 2)}}, {'a': {'b': [1, 2]}})
    with pytest.raises(UserError, match='f: .*a.b is 1, here 2; c is absent, here 3'):
        weights.check_config('f', {'a': {'b': 1}}, {'a': {'b': 2}, 'c': 3})


def test_shipped_files_are_found_by_name(tmp_path, monkeypatch):
    (tmp_path / 'assets').mkdir()
    save(tmp_path / 'assets' / 'heads128.safetensors')
    monkeypatch.setattr(weights.resources, 'files', lambda package: tmp_path)
    assert weights.shipped_names() == ['heads128']
    assert weights.load_weights(weights.shipped('heads128')).method == 'eg3d'
    with pytest.raises(UserError, match="did you mean 'heads128'"):
        weights.shipped('head128')
    with pytest.raises(UserError, match='there are: heads128'):
        weights.shipped('nothing-alike')
