"""Valid files of every kind, changed at random: each is refused in one line, or read to what it says.

Nothing else may happen: no other exception, no long wait, no large memory, and where a checksum or a size tells that
numbers changed, no changed numbers.
"""

from __future__ import annotations

import io
import pickle
import resource
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.io import weights
from avatar_jax.io.foreign import RawFile, read
from tests.convert import writers as w

SECONDS = 5  # of this process, not of the clock: the machine may be busy
MEMORY = 2_000_000  # KiB


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    made = {f'layer{i}.weight': rng.normal(size=(6, 5)).astype(np.float32) for i in range(3)}
    return made | {'bias': rng.normal(size=7), 'count': np.array(5), 'mask': rng.normal(size=9) > 0}


def corpus() -> dict[str, bytes]:
    """Small files of every kind."""
    arrays = _arrays()
    tensors = {k: w.tensor(v) for k, v in arrays.items()}
    transposed = w.Tensor(tensors['layer0.weight'].storage, 0, (5, 6), (1, 5))
    checkpoint = {'state': w.ordered(tensors), 'view': transposed, 'epoch': 3, 'opt': None, 'lr': [0.1, (1, 2)]}
    stored, packed = io.BytesIO(), io.BytesIO()
    np.savez(stored, **arrays)
    np.savez_compressed(packed, **arrays)
    chumpy = w.New(w.Name('chumpy.ch', 'Ch'), state={w.Py2(b'x'): w.array(arrays['bias'], py2=True)})
    sparse = {'_shape': (3, 4), 'data': np.ones(2), 'indices': np.array([0, 2]), 'indptr': np.array([0, 1, 2, 2, 2])}
    face = {w.Py2(b'shapedirs'): chumpy, w.Py2(b'J'): w.New(w.Name('scipy.sparse.csc', 'csc_matrix'), state=sparse)}
    matrices = [w.mat_array('shapePC', arrays['layer0.weight']), w.mat_array('bias', arrays['bias'][None])]
    cells = w.mat_matrix(b'cells', (1, 2), 1, w.mat_array('', np.ones((1, 2))) * 2)
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / 'own.safetensors'
        weights.save_weights(own, {'params': {'a': arrays['layer0.weight']}}, method='eg3d', config={}, provenance={})
        own_bytes = own.read_bytes()
    network = {'G_ema': w.nested_modules(arrays, z_dim=512, _init_kwargs={'w_dim': 4}), 'training_set_kwargs': None}
    return {
        'torch-zip': w.torch_zip(checkpoint),
        'torch-zip plain': w.torch_zip(checkpoint, wide=False, descriptors=False),
        'torch-stream': w.stream(checkpoint),
        'network-pickle': w.pickled(network, w.Options(4)),
        'pickle 0': w.pickled(face, w.Options(0)),
        'pickle 2': w.pickled(face | {'plain': arrays}),
        'pickle 5': pickle.dumps(arrays | {'more': [{1, 2}, frozenset('a'), 2**70]}, 5),
        'npz': stored.getvalue(),
        'npz packed': packed.getvalue(),
        'npy': w.npy(arrays['layer0.weight']),
        'npy objects': w.npy(np.array({'a': arrays['bias']}, dtype=object), allow_pickle=True),
        'mat': w.mat_file(*matrices, cells),
        'mat packed': w.mat_file(*(w.mat_compressed(m) for m in matrices)),
        'safetensors': w.safetensors(arrays),
        'safetensors own': own_bytes,
    }


CORPUS = corpus()
CHECKED = ('torch-zip', 'torch-zip plain', 'npz', 'npz packed', 'safetensors own')
"""Kinds of which every number has a checksum."""
VIEWED = ('torch-stream', 'network-pickle')
"""Kinds that say how many numbers are stored for a tensor."""


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four random changes."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        at = int(rng.integers(len(data)))
        length = int(min(rng.integers(1, 33), len(data) - at))
        change = rng.integers(10)
        if change == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif change == 1:
            data[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)]))
        elif change == 2:
            data[at] = (data[at] + int(rng.choice([-1, 1]))) % 256
        elif change == 3:  # a size
            width = int(rng.choice([2, 4, 8]))
            value = int(rng.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62])) % 2 ** (
                8 * width
            )
            data[at : at + width] = value.to_bytes(width, 'little')
        elif change == 4:
            del data[at : at + length]
        elif change == 5:
            data[at:at] = data[at : at + length] * int(rng.integers(1, 4))
        elif change == 6:
            data[at:at] = rng.bytes(length)
        elif change == 7:
            del data[at:]
        elif change == 8:  # two places change
            other = int(rng.integers(len(data)))
            piece = data[other : other + length]
            data[at : at + len(piece)] = piece
        else:  # a piece of another file
            other = CORPUS[str(rng.choice(list(CORPUS)))]
            start = int(rng.integers(len(other)))
            data[at : at + length] = other[start : start + length]
    return bytes(data)


class TooLongError(Exception):
    """A file took too long."""


@contextmanager
def limited():
    """Interrupts what takes more than ``SECONDS`` of processor time, and checks the memory afterwards."""

    def stop(number, frame):
        raise TooLongError(f'more than {SECONDS} seconds')

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


def check(kind: str, original: RawFile, raw: RawFile) -> None:
    """What was read from a changed file is not silently wrong."""
    if kind == 'safetensors own' and 'avatar_jax' not in raw.facts:
        return  # the entry with the checksum lost its name: a file of another program
    for name, array in raw.tensors.items():
        assert array.nbytes == array.size * array.dtype.itemsize  # every number of it can be reached
        array.tobytes()
        before = original.tensors.get(name)
        if kind in CHECKED:
            assert before is not None, name
            assert (array.dtype, array.shape) == (before.dtype, before.shape)
            assert array.tobytes() == before.tobytes(), name
        elif kind in VIEWED and before is not None and array.size != before.size:
            assert name in raw.partial, f'{name} became {array.shape}'
    if kind in CHECKED:
        assert set(raw.tensors) == set(original.tensors)


def run(folder: Path, numbers: range) -> dict[str, int]:
    """Changes and reads files; gives how many were read and refused."""
    originals = {kind: read(w.write(folder, f'good_{i}', content)) for i, (kind, content) in enumerate(CORPUS.items())}
    kinds = list(CORPUS)
    counts = {'read': 0, 'refused': 0}
    for number in numbers:
        kind = kinds[number % len(kinds)]
        path = w.write(folder, 'changed', mutated(CORPUS[kind], np.random.default_rng(number)))
        try:
            with limited():
                raw = read(path) if path.stat().st_size else None
        except UserError as error:
            counts['refused'] += 1
            assert str(error).startswith(str(path)) and str(error).isprintable(), (kind, number)
        except Exception as error:
            raise AssertionError(f'change {number} of {kind}: {type(error).__name__}: {error}') from error
        else:
            counts['read'] += 1
            if raw is not None:
                with limited():
                    check(kind, originals[kind], raw)
    return counts


def test_corpus_is_valid(tmp_path):
    for number, (kind, content) in enumerate(CORPUS.items()):
        raw = read(w.write(tmp_path, f'{number}', content))
        assert raw.kind == kind.split()[0] and raw.tensors


def test_changed_numbers_would_be_noticed(tmp_path):
    """The check of the mutation test itself can fail."""
    raw = read(w.write(tmp_path, 'a', CORPUS['npz']))
    other = read(w.write(tmp_path, 'b', CORPUS['npz']))
    other.tensors['bias'] = other.tensors['bias'] + 1
    with pytest.raises(AssertionError):
        check('npz', raw, other)
    stream = read(w.write(tmp_path, 'c', CORPUS['torch-stream']))
    smaller = read(w.write(tmp_path, 'd', CORPUS['torch-stream']))
    smaller.tensors['state/bias'] = smaller.tensors['state/bias'][:3]
    with pytest.raises(AssertionError):
        check('torch-stream', stream, smaller)


def test_some_mutations(tmp_path):
    counts = run(tmp_path, range(105))
    assert counts['refused'] > 50


@pytest.mark.slow
def test_many_mutations(tmp_path):
    counts = run(tmp_path, range(1000, 3010))
    assert counts['refused'] > 1000
