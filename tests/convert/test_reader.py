"""Files in the layouts of other programs come back number by number, with types, names and sharing intact."""

from __future__ import annotations

import collections
import io
import pickle
import tarfile

import ml_dtypes
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.foreign.pickle_values import Global
from avatar_jax.foreign.records import Record
from avatar_jax.io import weights
from avatar_jax.io.foreign import read
from avatar_jax.io.inputs import file_sha256
from tests.convert import writers as w
from tests.parity.golden import root

DTYPES = sorted(w.STORAGE_NAMES, key=str)


def numbers(dtype, shape, seed=0):
    """Numbers of any type."""
    draw = np.random.default_rng(seed).normal(0, 20, shape)
    return (
        (draw > 0).astype(dtype)
        if dtype == np.bool_
        else np.asarray(draw * (1 + 1j) if dtype == 'c8' else draw).astype(dtype)
    )


def same(a, b):
    """Equal in type, shape and every bit (NaN included)."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def assert_tensors(raw, expected):
    assert set(raw.tensors) == set(expected)
    for name, value in expected.items():
        assert same(raw.tensors[name], value), name
        assert not raw.tensors[name].flags.writeable


def test_network_pickle_sample():
    path = root() / 'eg3d' / 'network_pickle_sample.pkl'
    if not path.exists():
        pytest.skip('no sample here')
    raw = read(path)
    with np.load(path.with_name('network_pickle_sample_expected.npz')) as file:
        prefix = 'param/'
        expected = {k.removeprefix(prefix).replace('.', '/', 1): file[k] for k in file.files if k.startswith(prefix)}
    assert raw.kind == 'network-pickle'
    assert_tensors(raw, expected)
    assert raw.sha256 == file_sha256(path)
    assert raw.modules['G_ema']['class'] == 'TriPlaneGenerator'
    assert (
        raw.modules['G_ema']['init_kwargs']['rendering_kwargs']
        == raw.modules['G_ema']['attributes']['rendering_kwargs']
    )
    assert raw.modules['D']['class'] == 'DualDiscriminator'
    assert raw.modules['G_ema/renderer']['attributes']['plane_axes'].shape == (3, 3, 3)
    assert raw.tree['training_set_kwargs']['class_name'] == 'training.dataset.ImageFolderDataset'


# torch.


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_torch_types(tmp_path, dtype):
    """Every type, with shapes from a single number to four sides and an empty one."""
    expected = {str(i): numbers(dtype, s, i) for i, s in enumerate([(), (1,), (7,), (3, 5), (2, 3, 1, 4), (0, 4)])}
    value = w.ordered({k: w.tensor(v) for k, v in expected.items()})
    for name, content in (('a.pth', w.torch_zip(value)), ('b.pth', w.stream(value)), ('c.pkl', w.pickled(value))):
        assert_tensors(read(w.write(tmp_path, name, content)), expected)


@pytest.mark.parametrize(
    'options',
    [
        {'descriptors': False},
        {'wide': False},
        {'descriptors': False, 'wide': False},
        {'byteorder': False},
        {'big_endian': True},
        {'protocol': 3},
        {'protocol': 4},
        {'protocol': 5},
        {'name': 'epoch_1/x'},
    ],
    ids=str,
)
def test_torch_zip_variants(tmp_path, options):
    expected = {'w': numbers('f4', (4, 3)), 'b': numbers('i8', (5,)), 'h': numbers(ml_dtypes.bfloat16, (6,))}
    expected['c'] = numbers('c8', (3,))
    raw = read(w.write(tmp_path, 'x.pth', w.torch_zip({k: w.tensor(v) for k, v in expected.items()}, **options)))
    assert raw.kind == 'torch-zip'
    assert raw.facts['version'] == '3'
    assert_tensors(raw, expected)


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_torch_stream_protocols(tmp_path, protocol):
    expected = {'w': numbers('f4', (4, 3)), 'b': numbers('f8', (5,))}
    raw = read(w.write(tmp_path, 'x.pth', w.stream({k: w.tensor(v) for k, v in expected.items()}, protocol)))
    assert raw.kind == 'torch-stream'
    assert_tensors(raw, expected)


def layouts():
    """Tensors that are not contiguous, and what they should be: element i, j, ... is number offset + i s0 + j s1 ..."""
    base = numbers('f4', (120,))
    storage = w.Storage(base, location='cuda:0')
    cases = {
        'transposed': (0, (5, 4), (1, 5)),
        'channels_last': (0, (2, 3, 4, 5), (60, 1, 15, 3)),
        'sliced': (7, (3, 4), (20, 2)),
        'expanded': (3, (6, 4), (0, 1)),
        'overlapping': (0, (5, 4), (2, 1)),
        'number': (11, (), ()),
        'odd_stride_of_one': (2, (1, 3), (1 << 40, 1)),
        'empty': (120, (0, 3), (3, 1)),
    }
    expected = {}
    for name, (offset, shape, strides) in cases.items():
        index = sum((np.indices(shape)[k] * s for k, s in enumerate(strides)), np.full(shape, offset))
        expected[name] = base[index]
    return {k: w.Tensor(storage, *v) for k, v in cases.items()}, expected


@pytest.mark.parametrize('container', ['zip', 'stream'])
def test_torch_views_share_their_numbers(tmp_path, container):
    tensors, expected = layouts()
    content = w.torch_zip(tensors) if container == 'zip' else w.stream(tensors)
    raw = read(w.write(tmp_path, 'x.pth', content))
    assert_tensors(raw, expected)
    assert np.shares_memory(raw.tensors['channels_last'], raw.tensors['number'])
    assert set(raw.partial) == set(expected) - {'channels_last'}  # the only one that uses each number once


def test_torch_tensor_occurring_twice(tmp_path):
    """A layer that is used in several places is one array."""
    layer = w.tensor(numbers('f4', (8, 8)), parameter=True)
    raw = read(w.write(tmp_path, 'x.pth', w.torch_zip({'a': {f'{i}.weight': layer for i in range(5)}})))
    first, *others = raw.tensors.values()
    assert len(others) == 4
    assert all(np.shares_memory(first, other) for other in others)


def test_torch_stream_with_parts_of_storages(tmp_path):
    """The first torch versions could store a storage that is a part of another one."""
    base = w.Storage(numbers('f4', (20,)), key='94001')
    part = w.Storage(base.data, key='94001', view=('94002', 5, 10))
    content = w.stream({'x': w.Tensor(part, 2, (2, 3), (3, 1))}, storages=[base], views=True)
    assert_tensors(read(w.write(tmp_path, 'x.pth', content)), {'x': base.data[7:13].reshape(2, 3)})


def test_torch_pickle_with_archives_inside(tmp_path):
    """Newer torch stores the numbers of a tensor within a pickle as an archive."""
    value = numbers('f4', (3, 4))
    inner = w.Call(w.Name('torch.storage', '_load_from_bytes'), (w.torch_zip(w.Storage(value)),))
    outer = w.Call(w.Name('torch._utils', '_rebuild_tensor_v2'), (inner, 0, (3, 4), (4, 1), False, w.ordered()))
    assert_tensors(read(w.write(tmp_path, 'x.pkl', w.pickled({'x': outer}))), {'x': value})


def test_torch_rarer_ways_to_rebuild(tmp_path):
    """Plain, typed (uint16), with attributes, of a subclass."""
    numbers_ = np.arange(6, dtype=np.uint8)
    storage, hooks = w.Storage(numbers_), w.ordered()
    tensor_v2 = (storage, 0, (6,), (1,), False, hooks)
    name = lambda n: w.Name('torch._utils', n)
    value = {
        'plain': w.Call(name('_rebuild_tensor'), tensor_v2[:4]),
        'typed': w.Call(name('_rebuild_tensor_v3'), (storage, 1, (2,), (1,), False, hooks, w.Name('torch', 'uint16'))),
        'state': w.Call(
            name('_rebuild_parameter_with_state'), (w.Call(name('_rebuild_tensor_v2'), tensor_v2), True, hooks, {})
        ),
        'subclass': w.Call(
            w.Name('torch._tensor', '_rebuild_from_type_v2'),
            (name('_rebuild_tensor_v2'), w.Name('torch.nn.parameter', 'Parameter'), tensor_v2, {}),
        ),
        'metadata': w.Call(name('_rebuild_tensor_v2'), (*tensor_v2, {})),
        'size': w.Call(w.Name('torch', 'Size'), ([2, 3],)),
        'device': w.Call(w.Name('torch', 'device'), ('cuda', 0)),
        'dtype': w.Name('torch', 'float32'),
    }
    raw = read(w.write(tmp_path, 'x.pth', w.torch_zip(value)))
    typed = raw.tensors.pop('typed')
    assert typed.tolist() == [2 + 256 * 3, 4 + 256 * 5] and typed.dtype == np.uint16
    assert_tensors(raw, dict.fromkeys(('plain', 'state', 'subclass', 'metadata'), numbers_))
    assert raw.tree['size'] == (2, 3)
    assert raw.tree['device'] == 'cuda:0'
    assert raw.tree['dtype'] == Global('torch', 'float32')


def test_training_checkpoint(tmp_path):
    """Networks with and without prefix, optimiser and scheduler states, counters, missing parts."""
    warp = {'direction.weight': numbers('f4', (6, 2)), 'mapping_Refine.0.bias': numbers('f4', (6,), 1)}
    state_dict = w.Call(
        w.ORDERED,
        (),
        items={f'module.{k}': w.tensor(v) for k, v in warp.items()},
        state={'_metadata': w.ordered({'': {'version': 1}})},
    )
    moments = {'step': w.tensor(np.float32(3)), 'exp_avg': w.tensor(numbers('f4', (6, 2), 2))}
    scheduler = {
        'milestones': w.Call(w.Name('collections', 'Counter'), ({30: 1, 80: 2},)),
        'gamma': 0.5,
        'last_epoch': 4,
    }
    value = {
        'net_Warp': state_dict,
        'net_Warp_ema': w.ordered({k: w.tensor(v) for k, v in warp.items()}),
        'opt_Warp': {'state': {0: moments}, 'param_groups': [{'lr': 1e-4, 'betas': (0.5, 0.999), 'params': [0]}]},
        'sch_Warp': scheduler,
        'opt_G': None,
        'current_epoch': 5,
        'current_iteration': 2000,
    }
    raw = read(w.write(tmp_path, 'epoch_00005_iteration_000002000_checkpoint.pt', w.torch_zip(value)))
    expected = {f'net_Warp/module.{k}': v for k, v in warp.items()} | {f'net_Warp_ema/{k}': v for k, v in warp.items()}
    expected |= {'opt_Warp/state/0/step': np.float32(3), 'opt_Warp/state/0/exp_avg': moments['exp_avg'].storage.data}
    assert_tensors(raw, expected)
    assert raw.tree['current_iteration'] == 2000 and raw.tree['opt_G'] is None
    assert raw.tree['sch_Warp']['milestones'] == {30: 1, 80: 2}
    assert raw.tree['opt_Warp']['param_groups'][0]['betas'] == (0.5, 0.999)


def test_lightning_checkpoint(tmp_path):
    """Settings and callbacks of a training program beside the state dict."""
    weight = numbers('f4', (2, 3))
    node = w.New(w.Name('omegaconf.nodes', 'AnyNode'))
    config = w.New(w.Name('omegaconf.dictconfig', 'DictConfig'), state={'_content': {'lr': node}})
    node.state = {'_parent': config}  # such configurations refer back to their parents
    settings = w.Name('pytorch_lightning.utilities.parsing', 'AttributeDict')
    value = {
        'epoch': 3,
        'pytorch-lightning_version': '1.5.10',
        'state_dict': w.ordered({'net.weight': w.tensor(weight)}),
        'callbacks': {
            w.Name('pytorch_lightning.callbacks.model_checkpoint', 'ModelCheckpoint'): {'best': np.float64(0.5)}
        },
        'hyper_parameters': w.New(
            settings,
            items={
                'lr': 1e-3,
                'args': w.New(
                    w.Name('argparse', 'Namespace'),
                    state={'size': 64, 'out': w.Call(w.Name('pathlib', 'PosixPath'), ('/', 'a', 'b'))},
                ),
                'config': config,
                'lists': w.Call(
                    w.Name('collections', 'defaultdict'), (w.Name('__builtin__', 'list'),), items={'a': [1]}
                ),
            },
        ),
    }
    raw = read(w.write(tmp_path, 'last.ckpt', w.torch_zip(value)))
    assert_tensors(raw, {'state_dict/net.weight': weight})
    settings = raw.tree['hyper_parameters']
    assert settings['args'] == {'size': 64, 'out': '/a/b'}
    assert settings['lists'] == {'a': [1]}
    assert settings['config'].cls == 'omegaconf.dictconfig.DictConfig' and settings['config'].state is None
    assert any('omegaconf.dictconfig.DictConfig' in note for note in raw.notes)
    assert next(iter(raw.tree['callbacks'].values()))['best'] == 0.5


def test_tensor_with_left_over_numbers_is_noted(tmp_path):
    storage = w.Storage(numbers('f4', (12,)))
    raw = read(
        w.write(
            tmp_path,
            'x.pth',
            w.torch_zip({'part': w.Tensor(storage, 0, (2, 5), (5, 1)), 'all': w.tensor(numbers('f4', 3))}),
        )
    )
    assert raw.partial == ['part']
    assert len(raw.notes) == 1 and raw.notes[0].endswith(': part')


# Network pickles.


@pytest.mark.parametrize('protocol', [3, 4])
def test_network_pickle(tmp_path, protocol):
    decoder = w.New(
        w.Name('_imported_module_0123abcd.triplane', 'OSGDecoder'),
        state=w.module_state(
            modules={
                'net': w.New(
                    w.Name('torch.nn.modules.container', 'Sequential'),
                    state=w.module_state(
                        modules={
                            '0': w.nested_modules(
                                {'weight': numbers('f4', (4, 3)), 'bias': numbers('f4', (4,))},
                                weight_gain=np.float64(0.5),
                            ),
                            '1': w.New(
                                w.Name('torch.nn.modules.activation', 'Softplus'), state=w.module_state(beta=1.0)
                            ),
                        }
                    ),
                )
            }
        ),
    )
    synthesis = w.nested_modules(
        {'b4.const': numbers('f4', (2, 4, 4)), 'b4.conv1.noise_const': numbers('f4', (4, 4))}, ('noise_const',)
    )
    state = w.module_state(
        {'scale': numbers('f4', ()), 'absent': None},
        {'w_avg': numbers('f4', (5,)), 'grid': numbers('f4', (9,))},
        {'synthesis': synthesis, 'decoder': decoder, 'nothing': None},
        temporary=('grid',),
        z_dim=512,
        plane_axes=w.tensor(np.eye(3, dtype=np.float32)),
        _last_planes=None,
        _init_args=(),
        _init_kwargs=w.New(
            w.Name('dnnlib.util', 'EasyDict'), items={'w_dim': 512, 'mapping_kwargs': {'num_layers': 2}}
        ),
    )
    value = {'training_set_kwargs': None, 'G_ema': w.persistent('TriPlaneGenerator', state), 'augment_pipe': None}
    raw = read(w.write(tmp_path, 'network.pkl', w.pickled(value, w.Options(protocol))))
    assert raw.kind == 'network-pickle'
    assert_tensors(
        raw,
        {
            'G_ema/scale': numbers('f4', ()),
            'G_ema/w_avg': numbers('f4', (5,)),
            'G_ema/synthesis.b4.const': numbers('f4', (2, 4, 4)),
            'G_ema/synthesis.b4.conv1.noise_const': numbers('f4', (4, 4)),
            'G_ema/decoder.net.0.weight': numbers('f4', (4, 3)),
            'G_ema/decoder.net.0.bias': numbers('f4', (4,)),
        },
    )
    module = raw.modules['G_ema']
    assert module['class'] == 'TriPlaneGenerator' and module['persistent']
    assert module['init_kwargs'] == {'w_dim': 512, 'mapping_kwargs': {'num_layers': 2}} and module['init_args'] == ()
    assert module['attributes'].keys() == {'z_dim', 'plane_axes', '_last_planes'}
    assert same(module['attributes']['plane_axes'], np.eye(3, dtype=np.float32))
    assert raw.modules['G_ema/decoder']['class'] == '_imported_module_0123abcd.triplane.OSGDecoder'
    assert raw.modules['G_ema/decoder.net.0']['attributes']['weight_gain'] == 0.5
    assert isinstance(raw.tree['G_ema'], Record)


# Pickles of arrays and plain values.


PLAIN = {
    'none': None,
    'truth': [True, False],
    'integers': [0, -1, 255, 256, 65536, -(2**31), 2**40, -(2**70), 2**300],
    'numbers': [0.5, -1e-300, float('inf')],
    'text': 'Gesicht \u00fc \u4e2d \U0001f600 \\ \' "\n',
    'bytes': b'\x00\xff' * 3,
    'long': b'ab' * 4000,
    'tuples': ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    'nested': {'a': {'b': [[], {}]}},
    'set': {1, 2, 'x'},
    'frozen': frozenset({(1, 'a')}),
    'ordered': collections.OrderedDict(b=1, a=2),
    ('key', 3): 1,
    7: 2,
    None: 3,
    'complex': 1 + 2j,
}


@pytest.mark.parametrize('protocol', range(6))
def test_plain_values(tmp_path, protocol):
    raw = read(w.write(tmp_path, 'x.pkl', pickle.dumps(PLAIN, protocol)))
    assert raw.tree == PLAIN
    assert raw.kind == 'pickle' and not raw.tensors


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('writer', ['numpy', 'old numpy'])
def test_numpy_pickles(tmp_path, protocol, writer):
    """As this numpy writes them, and under the names of numpy 1."""
    value = {
        'c': numbers('f8', (3, 4)),
        'f': np.asfortranarray(numbers('f4', (3, 4))),
        'big': numbers('>i4', (5,)),
        'half': numbers('f2', (2,)),
        'truth': np.array([True, False]),
        'number': np.array(3.0),
        'empty': np.zeros((0, 3)),
        'text': np.array(['ab', 'c']),
        'bytes': np.array([b'ab', b'c']),
        'large': numbers('f8', (40, 50)),
    }
    # Python 3 writes the text characters of protocol 0 to 2 in its own way; numpy's own pickles cover that.
    content = pickle.dumps(value, protocol) if writer == 'numpy' else w.pickled(value, w.Options(max(protocol, 2)))
    raw = read(w.write(tmp_path, 'x.pkl', content))
    value['big'] = value['big'].astype('i4')
    assert set(raw.tensors) == set(value)
    for name, array in value.items():
        assert raw.tensors[name].dtype == array.dtype and np.array_equal(raw.tensors[name], array), name


@pytest.mark.parametrize('protocol', [0, 1, 2])
def test_flame_pickle_of_python_2(tmp_path, protocol):
    """Byte strings for texts, chumpy and scipy objects."""
    template, basis = numbers('f8', (4, 3)), numbers('f8', (4, 3, 50), 1)
    regressor = np.zeros((2, 4))
    regressor[0, 1], regressor[1, 3] = 0.25, 0.75
    chumpy = w.New(
        w.Name('chumpy.ch', 'Ch'),
        state={
            w.Py2(b'x'): w.array(basis, py2=True),
            w.Py2(b'_itr'): None,
            w.Py2(b'_dirty_vars'): w.Call(w.Name('__builtin__', 'set'), ([],)),
        },
    )
    sparse = w.New(
        w.Name('scipy.sparse.csc', 'csc_matrix'),
        state={
            w.Py2(b'_shape'): (2, 4),
            w.Py2(b'maxprint'): 50,
            w.Py2(b'data'): w.array(np.array([0.25, 0.75]), py2=True),
            w.Py2(b'indices'): w.array(np.array([0, 1], 'i4'), py2=True),
            w.Py2(b'indptr'): w.array(np.array([0, 0, 1, 1, 2], 'i4'), py2=True),
        },
    )
    value = {
        w.Py2(b'v_template'): w.array(template, py2=True),
        w.Py2(b'shapedirs'): chumpy,
        w.Py2(b'J_regressor'): sparse,
        w.Py2(b'bs_type'): w.Py2(b"l'rot\xe9min"),
        w.Py2(b'kintree_table'): w.array(np.array([[2**32 - 1, 0]], 'u4'), py2=True),
    }
    raw = read(w.write(tmp_path, 'generic_model.pkl', w.pickled(value, w.Options(protocol))))
    expected = {
        'v_template': template,
        'shapedirs': basis,
        'J_regressor': regressor,
        'kintree_table': np.array([[2**32 - 1, 0]], 'u4'),
    }
    assert_tensors(raw, expected)
    assert raw.tree['bs_type'] == "l'rot\xe9min"


@pytest.mark.parametrize('form', ['csc', 'csr', 'coo'])
@pytest.mark.parametrize('kind', ['matrix', 'array'])
def test_scipy_pickles(tmp_path, form, kind):
    sparse = pytest.importorskip('scipy.sparse')
    dense = np.where(numbers('f8', (5, 7), 1) > 10, numbers('f8', (5, 7)), 0.0)
    content = pickle.dumps({'m': getattr(sparse, f'{form}_{kind}')(dense)}, 4)
    assert_tensors(read(w.write(tmp_path, 'x.pkl', content)), {'m': dense})


# numpy's files, MATLAB, safetensors.


def test_npy_and_npz(tmp_path):
    value = {
        'a': numbers('f4', (3, 4)),
        'f': np.asfortranarray(numbers('f8', (3, 4))),
        'n': np.array(2),
        'e': np.zeros((0, 2)),
        't': np.array(['x', 'yz']),
    }
    np.savez(tmp_path / 'a.npz', **value)
    np.savez_compressed(tmp_path / 'b.npz', **value)
    for name in ('a.npz', 'b.npz'):
        raw = read(tmp_path / name)
        assert raw.kind == 'npz'
        assert_tensors(raw, value)
    for array in value.values():
        assert_tensors(read(w.write(tmp_path, 'x.npy', w.npy(array))), {'': array})


def test_npy_with_a_dictionary(tmp_path):
    """The landmark embedding of FLAME: a dictionary as an array of objects, some of its arrays torch tensors."""
    static, dynamic = np.arange(51), numbers('f4', (3, 4))
    inner = {'static_lmk_faces_idx': static, 'dynamic_lmk_bary_coords': w.tensor(dynamic)}
    head = w.npy(np.array({}, dtype=object), allow_pickle=True)
    head = head[: head.index(b'\n') + 1]
    state = (
        1,
        (),
        w.Call(w.Name('numpy', 'dtype'), ('O8', False, True), (3, '|', None, None, None, -1, -1, 63)),
        False,
        [inner],
    )
    made = w.Call(w.Name('numpy.core.multiarray', '_reconstruct'), (w.Name('numpy', 'ndarray'), (0,), b'b'), state)
    raw = read(w.write(tmp_path, 'x.npy', head + w.pickled(made, w.Options(3))))
    assert_tensors(raw, {'static_lmk_faces_idx': static, 'dynamic_lmk_bary_coords': dynamic})
    real = np.array([[{'a': static}, 1], ['x', None]], dtype=object)
    raw = read(w.write(tmp_path, 'y.npy', w.npy(real, allow_pickle=True)))
    assert_tensors(raw, {'0/0/a': static})
    assert raw.tree[1] == ['x', None] and raw.tree[0][1] == 1


@pytest.mark.parametrize('compressed', [False, True])
def test_mat(tmp_path, compressed):
    scipy_io = pytest.importorskip('scipy.io')
    sparse = pytest.importorskip('scipy.sparse')
    cells = np.empty((1, 2), object)
    cells[0, 0], cells[0, 1] = np.arange(3.0)[None], 'abc'
    value = {
        'shapePC': numbers('f4', (6, 4)),
        'tri': np.arange(12.0).reshape(4, 3),
        'idx': np.array([[1], [70790]], 'i4'),
        'big': numbers('f8', (30, 40)),
        'u': np.array([[1, 255]], 'u1'),
        'l': np.array([[2**60]], 'i8'),
        'z': numbers('c16', (2, 2)),
        'truth': np.array([[True, False]]),
        'cube': numbers('f8', (2, 3, 4)),
        'empty': np.zeros((0, 3)),
    }
    others = {
        'text': 'segbin \u00fc',
        'cells': cells,
        'struct': {'a': np.array([[1.0]]), 'b': 'x'},
        'sp': sparse.csc_matrix(np.diag([1.0, 2.0, 0.0])),
        'rows': np.array(['ab', 'cd']),
    }
    scipy_io.savemat(tmp_path / 'x.mat', value | others, do_compression=compressed)
    raw = read(tmp_path / 'x.mat')
    assert raw.kind == 'mat'
    expected = dict(value) | {
        'sp': np.diag([1.0, 2.0, 0.0]),
        'struct/a': np.array([[1.0]]),
        'cells/0/0': np.arange(3.0)[None],
    }
    assert_tensors(raw, expected)
    assert raw.tree['text'] == 'segbin \u00fc' and raw.tree['struct']['b'] == 'x' and raw.tree['cells'][0][1] == 'abc'
    assert raw.tree['rows'] == ['ab', 'cd']


def test_mat_of_another_byte_order_and_smaller_types(tmp_path):
    """Doubles stored as bytes by a big-endian machine."""
    import struct

    part = lambda kind, raw: struct.pack('>II', kind, len(raw)) + raw + b'\0' * (-len(raw) % 8)
    small = struct.pack('>HH', 3, 1) + b'tri\0'  # up to four bytes within the head: size, then type
    small = struct.pack('>HH', 3, 1) + b'tri' + b'\0'
    body = part(6, struct.pack('>II', 6, 0)) + part(5, struct.pack('>ii', 2, 3)) + small + part(2, bytes(range(6)))
    head = b'MATLAB 5.0 MAT-file'.ljust(124) + struct.pack('>H', 0x0100) + b'MI'
    raw = read(w.write(tmp_path, 'x.mat', head + part(14, body)))
    assert_tensors(raw, {'tri': np.arange(6.0).reshape(2, 3, order='F')})


def test_safetensors(tmp_path):
    value = {
        'a.weight': numbers('f4', (3, 4)),
        'h': numbers(ml_dtypes.bfloat16, (5,)),
        'n': numbers('i8', ()),
        'b': numbers(np.bool_, (3,)),
    }
    value |= {'e': np.zeros((0, 4), 'f4'), 'f8': numbers('f4', (4,)).astype(ml_dtypes.float8_e4m3fn)}
    raw = read(w.write(tmp_path, 'x.safetensors', w.safetensors(value, {'format': 'pt'})))
    assert raw.kind == 'safetensors' and raw.facts == {'format': 'pt'}
    assert_tensors(raw, value)


def test_own_weight_files_are_verified(tmp_path):
    path = tmp_path / 'x.safetensors'
    weights.save_weights(path, {'params': {'a': numbers('f4', (64,))}}, method='eg3d', config={}, provenance={})
    assert_tensors(read(path), {'params.a': numbers('f4', (64,))})
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    with pytest.raises(UserError, match='checksum'):
        read(w.write(tmp_path, 'y.safetensors', content))


# What is not read, and what it costs.


def tar_file():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w', format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo('storages'))
    return file.getvalue()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'\x89HDF\r\n\x1a\n' + b'\0' * 100, 'HDF5'),
        (b'MATLAB 7.3 MAT-file, Platform: x' + b' ' * 600, 'HDF5'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n', 'git-lfs'),
        (b'\n<!DOCTYPE html><html>', 'web page'),
        (b'<html><body>Sign in</body>', 'web page'),
        (b'\x1f\x8b\x08\x00', 'gzip'),
        (b'BZh91AY', 'bzip2'),
        (tar_file(), 'tar archive'),
        (b'ONNX? no\x08\x07', 'none of the files'),
        (b'\x80\x07}.', 'none of the files'),
        (w.zip_archive([('a.txt', b'x')]), 'neither a torch file nor'),
        (w.zip_archive([('a/data.pkl', b'N.'), ('a/constants.pkl', b'N.'), ('a/code/x.py', b'')]), 'TorchScript'),
        (w.zip_archive([('a/data.pkl', b'N.'), ('b/data.pkl', b'N.')]), 'several torch files'),
    ],
    ids=lambda v: v if isinstance(v, str) else '',
)
def test_other_files_are_named(tmp_path, content, message):
    path = w.write(tmp_path, 'model.pth', content)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f'{path}: ') and '\n' not in str(caught.value)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(UserError, match='no such file'):
        read(tmp_path / 'nothing.pth')
    with pytest.raises(UserError, match='is a folder'):
        read(tmp_path)
    with pytest.raises(UserError, match='empty'):
        read(w.write(tmp_path, 'x.pth', b''))


def test_limit_on_size(tmp_path):
    path = w.write(tmp_path, 'x.pth', w.torch_zip({'a': w.tensor(np.zeros(1000, np.float32))}))
    assert len(read(path, max_bytes=4000).tensors) == 1
    with pytest.raises(UserError, match='more than the limit'):
        read(path, max_bytes=3999)


def test_arrays_are_views_of_the_file(tmp_path):
    """Uncompressed numbers take no memory of their own."""
    value = {'a': w.tensor(np.zeros(5000, np.float32))}
    npz = io.BytesIO()
    np.savez(npz, a=np.zeros(5000, np.float32))
    contents = (
        w.torch_zip(value),
        w.stream(value),
        w.pickled(value),
        npz.getvalue(),
        w.safetensors({'a': np.zeros(5000, np.float32)}),
    )
    for content in contents:
        array = read(w.write(tmp_path, 'x', content)).tensors['a']
        while isinstance(array.base, np.ndarray):
            array = array.base
        assert type(array.base) is memoryview
