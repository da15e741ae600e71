"""Tensors, headers and archives that lie about their sizes and places: refused before anything is allocated."""

from __future__ import annotations

import pickle
import struct
import zlib

import numpy as np
import pytest

from avatar_jax.io.foreign import read
from tests.convert import writers as w
from tests.convert.harm import HOOKS, TENSOR, name, refused, text, timed

# Arrays and tensors that are not what they say.


def stored(count, shape, strides, offset=0, numbers=12):
    """A torch archive with one tensor and free choice of what it says."""
    data = np.arange(numbers, dtype=np.float32)
    pid = pickle.dumps((offset, shape, strides), 2)[2:-1]  # leaves the tuple on the stack
    assert pid
    program = b'\x80\x02' + TENSOR + b'((' + text('storage') + name('torch', 'FloatStorage') + text('0') + text('cpu')
    program += b'\x8a\x0a' + int(count).to_bytes(10, 'little', signed=True) + b'tQ'
    plain = lambda v: pickle.dumps(v, 2)[2:-1]
    program += plain(offset) + plain(shape) + plain(strides) + b'\x89' + HOOKS + b'tR.'
    return w.zip_archive([('a/data.pkl', program), ('a/data/0', data.tobytes())])


def test_stored_is_right(tmp_path):
    raw = read(w.write(tmp_path, 'x.pth', stored(12, (3, 4), (4, 1))))
    assert np.array_equal(raw.tensors[''], np.arange(12.0).reshape(3, 4))


@pytest.mark.parametrize(
    'arguments',
    [
        (13, (3, 4), (4, 1)),
        (11, (3, 4), (4, 1)),
        (-12, (3, 4), (4, 1)),
        (1 << 62, (3, 4), (4, 1)),
        (1 << 70, (3, 4), (4, 1)),
        (12, (3, 5), (4, 1)),
        (12, (4, 4), (4, 1)),
        (12, (-3, 4), (4, 1)),
        (12, (3, 4), (-4, 1)),
        (12, (3, 4), (4, 1), 1),
        (12, (3, 4), (4, 1), -1),
        (12, (3, 4), (4,)),
        (12, (3, 4), (1 << 61, 1)),
        (12, (1 << 62, 4), (0, 1)),
        (12, (3, 4), (4, 1), 1 << 61),
        (12, (1 << 20, 1 << 20), (0, 0)),
        (12, (1 << 33,), (0,)),
        (12, (1 << 40, 0), (0, 1)),
        (12, (0, 1 << 50), (1, 1)),
        (12, (1,) * 40, (1,) * 40),
        (12, (True, 4), (4, 1)),
        (12, (3.0, 4), (4, 1)),
        (12, [3, 4], (4, 1)),
        (12, '34', (4, 1)),
        (12, None, (4, 1)),
        (12, (3, 4), (4, True)),
        (12, (3, 4), (4, 1), 0.0),
    ],
    ids=str,
)
def test_tensors_that_lie(tmp_path, arguments):
    if arguments == (12, (1 << 40, 0), (0, 1)):
        assert read(w.write(tmp_path, 'x.pth', stored(*arguments))).tensors[''].shape == (1 << 40, 0)
        return
    timed(tmp_path, stored(*arguments))


def test_expanded_tensors_add_up(tmp_path):
    """Many views, each harmless, of which nobody could hold copies."""
    storage = w.Storage(np.zeros(1 << 20, np.float32))
    views = {str(i): w.Tensor(storage, 0, (32, 1 << 20), (0, 1)) for i in range(60)}
    timed(tmp_path, w.torch_zip(views), 'out of proportion')


def test_truth_values_above_one(tmp_path):
    data = np.array([0, 1, 2], np.uint8).view(np.bool_)
    for content in (
        w.torch_zip({'a': w.tensor(data)}),
        w.stream({'a': w.tensor(data)}),
        w.npy(data),
        w.safetensors({'a': data}),
    ):
        refused(tmp_path, content, 'truth values')


@pytest.mark.parametrize('storage', [('FloatStorage', 'DoubleStorage'), ('FloatStorage', 'IntStorage')])
def test_numbers_of_two_types(tmp_path, storage):
    one, other = (b'(' + text('storage') + name('torch', s) + text('0') + text('cpu') + b'K\x02tQ' for s in storage)
    content = w.zip_archive([('a/data.pkl', b'\x80\x02' + one + other + b'\x86.'), ('a/data/0', b'\0' * 8)])
    refused(tmp_path, content, 'announced in two ways')


def test_streams_that_lie(tmp_path):
    good = w.stream({'a': w.tensor(np.arange(4, dtype=np.float32))})
    count = good.rindex(struct.pack('<q', 4))
    refused(tmp_path, good[:-1], 'ends within')
    refused(tmp_path, good + b'x', 'goes on for 1 bytes')
    refused(tmp_path, good[:count], 'ends before')
    refused(tmp_path, good[:count] + struct.pack('<q', 5) + good[count + 8 :], '4 in one place and 5 in another')
    refused(tmp_path, good[:count] + struct.pack('<q', -1) + good[count + 8 :], 'in another')
    refused(tmp_path, good.replace(pickle.dumps(['0'], 2), pickle.dumps(['1'], 2)), 'differs')
    refused(tmp_path, good.replace(pickle.dumps(['0'], 2), pickle.dumps(['0', '0'], 2)), 'differs')
    refused(
        tmp_path,
        good.replace(b'little_endian\x94\x88'.replace(b'\x94', b'q\x02'), b'little_endianq\x02\x89'),
        'byte order',
    )


@pytest.mark.parametrize(
    'header',
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '<f4', 'fortran_order': 7, 'shape': (2,), }",
        "{'descr': '<f4', 'shape': (2,), }",
        "__import__('os').system('x')",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}",
        "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,), }",
        '(' * 900,
        "{'descr': '<V8', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999), }",
        "{'descr': '<U2', 'fortran_order': False, 'shape': (1,), }",
    ],
)
def test_npy_headers_that_lie(tmp_path, header):
    raw = header.encode().ljust(117) + b'\n'
    timed(tmp_path, b'\x93NUMPY\x01\x00' + struct.pack('<H', len(raw)) + raw + b'\xff' * 8)


def test_npy_header_longer_than_the_file(tmp_path):
    refused(tmp_path, b'\x93NUMPY\x02\x00' + struct.pack('<I', 1 << 31) + b'x' * 100, 'longer')


def safetensors_of(header: str, data: bytes = b'\0' * 8) -> bytes:
    raw = header.encode()
    return struct.pack('<Q', len(raw)) + raw + data


@pytest.mark.parametrize(
    'header',
    [
        '{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        '{"a":{"dtype":"F32","shape":[-2],"data_offsets":[8,0]}}',
        '{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
        '{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}',
        '{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F32","shape":[true,2],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"X","shape":[2],"data_offsets":[0,8]}}',
        '{"a":{"dtype":["F32"],"shape":[2],"data_offsets":[0,8]}}',
        '{"a":{"dtype":{"F32":null},"shape":[2],"data_offsets":[0,8]}}',
        '{"a":["F32",[2],[0,8]]}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F4","shape":[16],"data_offsets":[0,8]}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[0,999999999999999],"data_offsets":[8,8]}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}',
        '{"a":{"dtype":"F32","shape":[2]}}',
        '{"a":NaN}',
        '{"a":1}',
        '{"a"',
        '{}',
        '{"__metadata__":{"a":1}}',
        '{"__metadata__":[]}',
        '{"a":' + '[' * 100_000 + '}',
        '{"a":' + '9' * 10_000 + '}',
        '{"__metadata__":{"avatar_jax":"{"}}',
        '{"__metadata__":{"avatar_jax":"[1]"}}',
    ],
)
def test_safetensors_headers_that_lie(tmp_path, header):
    timed(tmp_path, safetensors_of(header))


def test_safetensors_header_of_gigabytes(tmp_path):
    refused(tmp_path, struct.pack('<Q', 1 << 39) + b'{' + b' ' * 100, 'announces a header')
    refused(tmp_path, struct.pack('<Q', 9 << 20) + b'{' + b' ' * (9 << 20), 'header of')


TWO = (9, np.zeros(2).tobytes())


def matrix(shape=(1, 2), kind=6, numbers=TWO, bits=0, name=b'a', rest=b'') -> bytes:
    return w.mat_matrix(name, shape, kind, w.mat_part(*numbers) + rest if numbers else rest, bits)


def test_mat_is_right(tmp_path):
    assert read(w.write(tmp_path, 'x.mat', w.mat_file(matrix()))).tensors['a'].shape == (1, 2)


@pytest.mark.parametrize(
    'content',
    [
        matrix((1, 3)),
        matrix((1, 1)),
        matrix((1, -2)),
        matrix((1 << 30, 1 << 30)),
        matrix((0, 1 << 30)),
        matrix((2,)),
        matrix((1,) * 40),
        matrix(kind=16),
        matrix(kind=17),
        matrix(kind=3),
        matrix(kind=99),
        matrix(kind=9, numbers=(9, np.array([1.5, 2]).tobytes())),
        matrix(kind=9, numbers=(9, np.array([1, 300.0]).tobytes())),
        matrix(numbers=(77, b'\0' * 16)),
        matrix(numbers=(9, b'\0' * 15)),
        matrix(name=b'a b'),
        matrix(name=b'../a'),
        matrix(name=b''),
        matrix(numbers=None),
        matrix(rest=w.mat_part(9, b'\0' * 16)),
        matrix(kind=9, numbers=(2, b'\x07\1'), bits=2),
        matrix(kind=1, shape=(1000, 1000), numbers=None),
        matrix(kind=2, numbers=(5, struct.pack('<i', 0))),
        matrix(kind=2, shape=(1 << 20, 1 << 20), numbers=(5, struct.pack('<i', 8)), rest=w.mat_part(1, b'')),
        matrix(kind=2, shape=(1 << 24, 1), numbers=(5, struct.pack('<i', 8)), rest=w.mat_part(1, b'')),
        matrix(kind=4, numbers=(16, b'\xff\xfe')),
        matrix(kind=4, numbers=(16, b'abc')),
        matrix(kind=5, shape=(1 << 30, 1 << 15), numbers=(5, b''), rest=w.mat_part(5, b'\0' * 8) + w.mat_part(9, b'')),
        matrix(
            kind=5,
            shape=(2, 2),
            numbers=(5, struct.pack('<i', 7)),
            rest=w.mat_part(5, struct.pack('<3i', 0, 1, 1)) + w.mat_part(9, np.ones(1).tobytes()),
        ),
        matrix(
            kind=5,
            shape=(2, 2),
            numbers=(5, struct.pack('<i', 0)),
            rest=w.mat_part(5, struct.pack('<3i', 0, 9, 1)) + w.mat_part(9, np.ones(1).tobytes()),
        ),
        matrix() + matrix(),
        w.mat_part(14, b'\0' * 8, 1 << 31),
        w.mat_part(9, b'\0' * 16),
        b'\0\0\0',
        struct.pack('<II', 15, 100) + b'x' * 100,
        w.mat_compressed(b'abc'),
        w.mat_compressed(w.mat_compressed(matrix())),
        w.mat_compressed(matrix()[:-4]),
        w.mat_compressed(matrix() + b'x' * 8),
        struct.pack('<II', 15, 9) + zlib.compress(matrix())[:9],
        struct.pack('<II', 15, len(zlib.compress(matrix()))) + zlib.compress(matrix())[:-1] + b'\x99',
        w.mat_compressed(struct.pack('<II', 14, 0xFFFFFFF0) + b'\0' * 1_000_000),
        struct.pack('<I', 9 << 16 | 14) + b'\0' * 12,
    ],
    ids=lambda c: str(zlib.crc32(c)),
)
def test_mat_files_that_lie(tmp_path, content):
    timed(tmp_path, w.mat_file(content))


def test_mat_cells_in_cells(tmp_path):
    content = matrix()
    for _ in range(40):
        content = matrix(kind=1, shape=(1, 1), numbers=None, rest=content)
    timed(tmp_path, w.mat_file(content), 'without end')


def test_sparse_matrices_that_lie(tmp_path):
    def sparse(form, **state):
        return w.pickled(
            {
                'm': w.New(
                    w.Name(f'scipy.sparse.{form}', f'{form}_matrix'),
                    state={f'_{k}' if k == 'shape' else k: v for k, v in state.items()},
                )
            }
        )

    ones, two = np.ones(2), np.arange(2)
    good = {'shape': (2, 3), 'data': ones, 'indices': two, 'indptr': np.array([0, 1, 2, 2])}
    assert read(w.write(tmp_path, 'x', sparse('csc', **good))).tensors['m'].tolist() == [[1, 0, 0], [0, 1, 0]]
    bad = [
        {'shape': (10**6, 10**6), 'indptr': np.zeros(10**6 + 1, int)},
        {'shape': (2, 2)},
        {'shape': (-2, 3)},
        {'shape': 5},
        {'shape': (2, 3, 1)},
    ]
    bad += [
        {'indices': np.array([0, 2])},
        {'indices': np.array([0, -1])},
        {'indices': ones},
        {'indices': 'x'},
        {'indices': two[:1]},
    ]
    bad += [
        {'indptr': np.array([0, 2, 1, 2])},
        {'indptr': np.array([0, 1, 2, 9])},
        {'indptr': np.array([1, 1, 2, 2])},
        {'data': None},
        {'data': ones[None]},
    ]
    for change in bad:
        timed(tmp_path, sparse('csc', **(good | change)), 'sparse')
    points = {'shape': (2, 3), 'data': ones, 'row': two, 'col': two}
    assert read(w.write(tmp_path, 'x', sparse('coo', **points))).tensors['m'].tolist() == [[1, 0, 0], [0, 1, 0]]
    for change in ({'row': two + 1}, {'col': two + 2}, {'col': two - 1}, {'row': two[:1]}, {'coords': two}):
        timed(tmp_path, sparse('coo', **(points | change)), 'sparse')


# Archives.

NUMBERS = np.arange(3, dtype=np.float32)
GOOD = w.torch_zip({'a': w.tensor(NUMBERS)}, descriptors=False, wide=False)


@pytest.mark.parametrize(
    'member', ['../x.npy', '/x.npy', 'a/../../x.npy', 'a\\..\\x.npy', 'C:/x.npy', 'a/./x.npy', 'x\0.npy', '']
)
def test_names_that_lead_elsewhere(tmp_path, member):
    refused(tmp_path, w.zip_archive([(member, w.npy(NUMBERS))]), 'leads elsewhere|several parts|not valid')


def test_members_of_one_name(tmp_path):
    refused(tmp_path, w.zip_archive([('a.npy', w.npy(NUMBERS)), ('a.npy', w.npy(NUMBERS * 2))]), 'two members')


def test_archive_bombs(tmp_path):
    """Much from little: in one member, in several together, and more than the member announces."""
    timed(tmp_path, w.zip_archive([('a.npy', w.deflated_zeros(600))], deflate=True), 'out of proportion')
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({150 << 20},), }}".ljust(117) + '\n'
    head = b'\x93NUMPY\x01\x00' + struct.pack('<H', len(head)) + head.encode()
    member = w.deflated_zeros(150, head)
    member.crc = zlib.crc32(head + bytes(150 << 20))
    assert (
        read(w.write(tmp_path, 'one.npz', w.zip_archive([('a.npy', member)], deflate=True))).tensors['a'].size
        == 150 << 20
    )
    timed(
        tmp_path,
        w.zip_archive([(f'{i}.npy', member) for i in range(4)], deflate=True),
        '1.npy would take.*out of proportion',
    )
    lying = w.deflated_zeros(600)
    lying.size = 1 << 20
    timed(tmp_path, w.zip_archive([('a.npy', lying)], deflate=True), 'another size')


def test_sizes_in_archives_that_lie(tmp_path):
    content = w.npy(np.zeros(1000, np.uint8))
    good = w.zip_archive([('a.npy', content)], deflate=True)
    size = struct.pack('<I', len(content))
    for other in (len(content) - 1, len(content) + 1, 1 << 20, (1 << 32) - 2):
        refused(tmp_path, good.replace(size, struct.pack('<I', other)), 'size|announces')
    wide = w.zip_archive([('a.npy', content)], wide=True)
    for other in (1 << 40, (1 << 64) - 1):
        refused(tmp_path, wide.replace(struct.pack('<Q', len(content)), struct.pack('<Q', other)))


def test_members_that_overlap(tmp_path):
    """Two entries for the same bytes, which a bomb of a few kilobytes uses to become petabytes."""
    archive = bytearray(w.zip_archive([('a.npy', w.npy(NUMBERS)), ('b.npy', w.npy(NUMBERS))]))
    first = archive.index(b'PK\1\2')
    second = archive.index(b'PK\1\2', first + 4)
    archive[second + 42 : second + 46] = archive[first + 42 : first + 46]  # where the member is
    refused(tmp_path, bytes(archive), 'own header')
    archive[second + 46 : second + 51] = b'a.npy'
    refused(tmp_path, bytes(archive), 'two members')
    # A member within another one, with a header of its own there.
    inner = w.zip_archive([('b.npy', w.npy(NUMBERS))])
    outer = w.zip_archive([('a.npy', inner[: inner.index(b'PK\1\2')]), ('b.npy', w.npy(NUMBERS))])
    table = outer.index(b'PK\1\2')
    second = outer.index(b'PK\1\2', table + 4)
    place = struct.pack('<I', outer.index(b'PK\3\4', 4))
    refused(tmp_path, outer[: second + 42] + place + outer[second + 46 :], 'overlap')


def replaced(old: bytes, new: bytes, number: int = 0) -> bytes:
    at = -1
    for _ in range(number + 1):
        at = GOOD.index(old, at + 1)
    return GOOD[:at] + new + GOOD[at + len(new) :]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'x' + GOOD, 'none of the files'),
        (GOOD + b'x', 'goes on after its end'),
        (GOOD[:-30], 'missing'),
        (GOOD[: len(GOOD) // 2], 'missing'),
        (replaced(NUMBERS.tobytes(), b'\x01'), 'checksum'),
        (replaced(b'archive/data/0', b'archive/data/1'), 'own header'),
        (replaced(b'archive/data/0', b'archive/data/1', 1), 'own header'),
        (replaced(b'PK\1\2', b'PK\1\3'), 'not valid'),
        (replaced(b'PK\3\4', b'PK\3\5', 1), 'not where it should be'),
        (GOOD[:-12] + b'\xff\xff' + GOOD[-10:], 'several parts'),
        (GOOD[:-14] + b'\xff\xff\xff\xff' + GOOD[-10:], 'cannot have'),
        (GOOD[:-6] + b'\xff\xff\xff\x7f' + GOOD[-2:], 'not where it should be'),
        (w.zip_archive([('a/data.pkl', b'\x80\x02N.x')]), 'goes on after its end'),
        (w.zip_archive([('a/data.pkl', b'\x80\x02N.'), ('a/byteorder', b'middle')]), 'byte order'),
        (
            w.zip_archive([('a/data.pkl', w.pickled({'a': w.tensor(NUMBERS)}, w.Options(outside=True)))]),
            'lacks a/data/0',
        ),
        (
            w.zip_archive(
                [
                    ('a/data.pkl', w.pickled({'a': w.tensor(NUMBERS)}, w.Options(outside=True))),
                    ('a/data/0', b'\0' * 12),
                ],
                deflate=True,
            ),
            'never',
        ),
        (
            w.zip_archive(
                [('a/data.pkl', w.pickled({'a': w.tensor(NUMBERS)}, w.Options(outside=True))), ('a/data/0', b'\0' * 16)]
            ),
            'announced',
        ),
        (w.zip_archive([('a/', b'x'), ('b.npy', w.npy(NUMBERS))]), 'folder with content'),
    ],
    ids=lambda v: v if isinstance(v, str) else '',
)
def test_archives_that_contradict_themselves(tmp_path, content, message):
    refused(tmp_path, content, message)


def test_encrypted_and_oddly_compressed_members(tmp_path):
    at = GOOD.index(b'PK\1\2')
    refused(tmp_path, GOOD[: at + 8] + b'\x01\x08' + GOOD[at + 10 :], 'encrypted')
    refused(tmp_path, GOOD[: at + 10] + b'\x0c\x00' + GOOD[at + 12 :], 'unusual compression')


def test_storage_keys_cannot_leave_the_archive(tmp_path):
    storage = w.Storage(NUMBERS, key='../../version')
    content = w.torch_zip({'a': w.Tensor(storage)})
    refused(tmp_path, content, 'leads elsewhere')
    other = w.pickled({'a': w.Tensor(storage)}, w.Options(outside=True))
    refused(tmp_path, w.zip_archive([('x/data.pkl', other), ('version', b'0' * 12)]), 'lacks')
