"""Files made to do harm: nothing in them is run, nothing they announce is believed."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import resource
import struct
import sys
import time
import zlib

import numpy as np
import pytest

from avatar_jax.convert import limits
from avatar_jax.convert.read import read
from avatar_jax.errors import UserError
from tests.convert import writers as w

CANARY = 'avatar_canary'


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module that leaves a file behind when it is imported, or when its function is called."""
    sentinel = tmp_path / 'was_run'
    folder = tmp_path / 'modules'
    folder.mkdir()
    text = f'def run(*a, **k):\n    open({str(sentinel)!r}, "w").close()\n    return run\nrun()\n'
    (folder / f'{CANARY}.py').write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv('AVATAR_SENTINEL', str(sentinel))
    importlib.invalidate_caches()
    yield sentinel
    sys.modules.pop(CANARY, None)
    assert not sentinel.exists()


COMMAND = 'touch "$AVATAR_SENTINEL"'


def text(value: str) -> bytes:
    raw = value.encode()
    return b'X' + struct.pack('<I', len(raw)) + raw


def name(module: str, what: str) -> bytes:
    return f'c{module}\n{what}\n'.encode()


def stacked(module: str, what: str) -> bytes:
    return text(module) + text(what) + b'\x93'


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b'(' + b''.join(arguments) + b'tR'


SYSTEM = call(name('os', 'system'), text(COMMAND))
DANGEROUS = [
    *(('os', n) for n in ('system', 'popen', 'execv', 'spawnl', 'remove', 'putenv')),
    *(('posix', 'system'), ('nt', 'system'), ('subprocess', 'Popen'), ('subprocess', 'check_output'), ('commands', 'getoutput')),
    *(('builtins', n) for n in ('eval', 'exec', 'compile', '__import__', 'getattr', 'setattr', 'open', 'input', 'print', 'map')),
    *(('__builtin__', n) for n in ('eval', 'execfile', 'file', 'getattr', '__import__', 'apply', 'reduce')),
    *(('importlib', 'import_module'), ('runpy', 'run_path'), ('pty', 'spawn'), ('code', 'interact'), ('timeit', 'timeit')),
    *(('pickle', 'loads'), ('_pickle', 'loads'), ('marshal', 'loads'), ('shelve', 'open'), ('ctypes', 'CDLL')),
    *(('types', 'FunctionType'), ('types', 'CodeType'), ('operator', 'attrgetter'), ('functools', 'partial')),
    *(('webbrowser', 'open'), ('socket', 'create_connection'), ('urllib.request', 'urlopen'), ('shutil', 'rmtree')),
    *(('asyncio.unix_events', '_UnixSubprocessTransport'), ('multiprocessing.util', 'spawnv_passfds'), ('pdb', 'run')),
    *(('torch', 'load'), ('torch.hub', 'load'), ('torch.utils.model_zoo', 'load_url'), ('torch.jit', 'load')),
    *(('torch.serialization', 'load'), ('torch._dynamo.guards', 'eval'), ('torch._utils', '_rebuild_sparse_tensor')),
    *(('numpy', 'load'), ('numpy', 'memmap'), ('numpy.f2py.crackfortran', 'myeval'), ('numpy.core.multiarray', 'fromfile')),
    *(('numpy.testing._private.utils', 'runstring'), ('scipy.io', 'loadmat'), ('joblib', 'load'), ('dill', 'loads')),
    *(('copyreg', '__newobj__'), ('copy_reg', '_reduce_ex'), ('codecs', 'decode'), ('_codecs', 'decode'), ('pip', 'main')),
    *(('jax', 'device_put'), ('avatar_jax.cli', 'main'), ('cloudpickle.cloudpickle', 'subimport'), (CANARY, 'run')),
]  # fmt: skip


def shells(payload: bytes) -> dict[str, bytes]:
    """A pickle program (without its end) in every place where a file may hold one."""
    program = b'\x80\x04' + payload + b'.'
    plain = w.stream({'x': w.tensor(np.zeros(2, np.float32))})
    magic, protocol = pickle.dumps(w.MAGIC, 2), pickle.dumps(w.PROTOCOL, 2)
    system = pickle.dumps({'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}, 2)
    npy_head = w.npy(np.array({}, dtype=object), allow_pickle=True)
    npy_head = npy_head[: npy_head.index(b'\n') + 1]
    inner = b'B' + struct.pack('<I', len(magic + protocol + system + program)) + magic + protocol + system + program
    zipped = w.zip_archive([('a/data.pkl', program), ('a/version', b'3\n')])
    inner_zip = b'B' + struct.pack('<I', len(zipped)) + zipped
    load = name('torch.storage', '_load_from_bytes')
    network = b'\x80\x04(' + text('G') + name('torch_utils.persistence', '_reconstruct_persistent_obj') + text('x') + payload
    return {
        'pickle': program,
        'pickle of protocol 0': b'(' + payload + b't.',
        'zip': zipped,
        'stream': magic + protocol + system + program + pickle.dumps([], 2),
        'system of stream': magic + protocol + program + plain[len(magic + protocol + system) :],
        'keys of stream': magic + protocol + system + pickle.dumps({}, 2) + program,
        'npy': npy_head + program,
        'npz': w.zip_archive([('a.npy', npy_head + program)]),
        'tensor in pickle': b'\x80\x04' + call(load, inner) + b'.',
        'tensor in pickle, as zip': b'\x80\x04' + call(load, inner_zip) + b'.',
        'network pickle': network + b't.',
    }


def refused(tmp_path, content: bytes, message: str | None = None, file: str = 'model.bin') -> str:
    """Reads a file that must be refused, soon (in seconds of this process: the machine may be busy); the message."""
    path = w.write(tmp_path, file, content)
    before = set(os.listdir(tmp_path))
    start = time.process_time()
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert time.process_time() - start < 5
    assert set(os.listdir(tmp_path)) == before
    said = str(caught.value)
    assert said.startswith(str(path)) and said.isprintable()
    return said


def test_the_canary_sings(tmp_path, canary):
    """The payloads of these tests do what they say when they are loaded in the ordinary way."""
    for payload in (SYSTEM, call(name(CANARY, 'run'))):
        pickle.loads(payload + b'.')
        assert canary.exists()
        canary.unlink()
        sys.modules.pop(CANARY, None)


@pytest.mark.parametrize('shell', list(shells(b'N')))
def test_dangerous_names(tmp_path, canary, shell):
    """Called, made, or only mentioned: the name is in the message, and nothing is imported."""
    for module, what in DANGEROUS:
        programs = [call(name(module, what), text(COMMAND))]
        if shell in ('pickle', 'network pickle'):
            programs += [call(stacked(module, what), text(COMMAND)), name(module, what), name(module, what) + b')\x81']
            programs.append(b'(' + text(COMMAND) + f'i{module}\n{what}\n'.encode())
            programs.append(b'(' + name(module, what) + text(COMMAND) + b'o')
        for number, program in enumerate(programs):
            if module == CANARY and shell == 'network pickle' and number in (2, 3):
                continue  # a mere class of the network; the test of network pickles looks at it
            said = refused(tmp_path, shells(program)[shell])
            assert f'{module}.{what}' in said, said
    assert CANARY not in sys.modules


PERSISTENCE = name('torch_utils.persistence', '_reconstruct_persistent_obj')
HOOKS = name('collections', 'OrderedDict') + b')R'
TENSOR = name('torch._utils', '_rebuild_tensor_v2')
TRICKS = {
    'name from the memo': text('os') + b'\x94' + text('system') + b'\x94' + b'00h\x00h\x01\x93' + b'(' + text(COMMAND) + b'tR',
    'attribute of a name': stacked('collections', 'OrderedDict.fromkeys.__self__.__init__.__globals__') + b')R',
    'attribute of a module': stacked('torch._utils', '_rebuild_tensor_v2.__globals__') + b')R',
    'module with a path': stacked('../../modules/x', 'y') + b')R',
    'empty name': stacked('', '') + b')R',
    'name with a line end': stacked('os\n', 'system') + b')R',
    'name that is a list': b']]\x93)R',
    'getattr chain': call(name('builtins', 'getattr'), call(name('builtins', '__import__'), text('os')), text('system')),
    'codec': call(name('_codecs', 'encode'), text('x'), text('rot13')),
    'codec of bytes': call(name('_codecs', 'encode'), b'C\x01x', text('latin1')),
    'extension 1': b'\x82\x01',
    'extension 2': b'\x83\x01\x00',
    'extension 4': b'\x84\x01\x00\x00\x00',
    'keyword arguments': name('collections', 'OrderedDict') + b')}' + text('a') + b'Ns\x92',
    'persistent text': b'P0\n',
    'persistent text of a command': b'P__import__("os").system("true")\n',
    'persistent id': text('x') + b'Q',
    'persistent module': b'(' + text('module') + name('builtins', 'object') + text('a.py') + text('import os') + b'tQ',
    'persistent id of a list': b']Q',
    'persistent id of a tuple of lists': b'(]]tQ',
    'storage that is a function': b'(' + text('storage') + name('torch._utils', '_rebuild_tensor') + text('0') + text('cpu') + b'K\x01tQ',
    'buffer from outside': b'\x97',
    'read-only buffer from outside': b'\x97\x98',
    'call of a text': text('os.system') + b')R',
    'call of a dictionary': b'})R',
    'call with a list': name('collections', 'OrderedDict') + b']R',
    'new text': text('x') + b')\x81',
    'new function': name('torch._utils', '_rebuild_tensor_v2') + b')\x81',
    'new number': name('builtins', 'int') + b')\x81',
    'call of a mentioned class': name('builtins', 'int') + b'(K\x01tR',
    'call of object': name('builtins', 'object') + b')R',
    'state for a dictionary': b'}}' + text('__class__') + b'Nsb',
    'state for a list': b']}b',
    'state for a name': name('collections', 'OrderedDict') + b'}b',
    'state that is a text': HOOKS + text('x') + b'b',
    'two states': HOOKS + b'}b}b',
    'items for a name': name('collections', 'OrderedDict') + text('a') + b'Ns',
    'items for a list': b']' + text('a') + b'Ns',
    'append to a tuple': b')Na',
    'append to a text': text('a') + b'Na',
    'key that is a list': b'}]Ns',
    'key that is a tuple of lists': b'}](]ttNs',
    'set of lists': b'\x8f(]\x90',
    'frozen set of dictionaries': b'(}\x91',
    'key without value': b'}(' + text('a') + b'u',
    'old class with arguments': b'(' + text('x') + b'ichumpy.ch\nCh\n',
    'class with arguments': name('scipy.sparse.csc', 'csc_matrix') + b'(K\x01tR',
    'new class with arguments': name('scipy.sparse.csc', 'csc_matrix') + b'(K\x01t\x81',
    'reconstructor of a function': call(name('copy_reg', '_reconstructor'), TENSOR, name('builtins', 'object'), b'N'),
    'reconstructor of a list': call(name('copy_reg', '_reconstructor'), name('builtins', 'list'), name('builtins', 'list'), b']'),
    'reconstructor of nothing': call(name('copy_reg', '_reconstructor'), b'NNN'),
    'dictionary of a text': call(name('collections', 'OrderedDict'), text('ab')),
    'dictionary of odd pairs': call(name('collections', 'OrderedDict'), b'](K\x01te'),
    'dictionary of two': call(name('collections', 'OrderedDict'), b'}}'),
    'default of a text': call(name('collections', 'defaultdict'), text('x')),
    'set of a set': call(name('builtins', 'set'), b'\x8f'),
    'byte array of a number': call(name('builtins', 'bytearray'), b'J\xff\xff\xff\x7f'),
    'bytes of a number': call(name('builtins', 'bytes'), b'J\xff\xff\xff\x7f'),
    'complex of texts': call(name('builtins', 'complex'), text('1'), text('2')),
    'dtype of a name': call(name('numpy', 'dtype'), name('builtins', 'object')),
    'dtype of dates': call(name('numpy', 'dtype'), text('M8[ns]')),
    'dtype with fields': call(name('numpy', 'dtype'), text('i4,f8')),
    'dtype of a huge text': call(name('numpy', 'dtype'), text('S99999999999')),
    'dtype with metadata': call(name('numpy', 'dtype'), text('f8')) + b'(K\x03' + text('<') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00}K\x01K\x02stb',
    'dtype of nothing': call(name('numpy', 'dtype')),
    'array of another class': call(name('numpy.core.multiarray', '_reconstruct'), name('builtins', 'object'), b'(K\x00t', b'C\x01b'),
    'array without content': call(name('numpy.core.multiarray', '_reconstruct'), name('numpy', 'ndarray'), b'(K\x00t', b'C\x01b'),
    'number of objects': call(name('numpy.core.multiarray', 'scalar'), call(name('numpy', 'dtype'), text('O8')), b'N'),
    'number of wrong size': call(name('numpy.core.multiarray', 'scalar'), call(name('numpy', 'dtype'), text('f8')), b'C\x01x'),
    'tensor of a list': TENSOR + b'(]K\x00))\x89' + HOOKS + b'tR',
    'tensor of three': TENSOR + b'(NK\x00)tR',
    'parameter of a text': call(name('torch._utils', '_rebuild_parameter'), text('x'), b'\x88', HOOKS),
    'subclass by a function': call(name('torch._tensor', '_rebuild_from_type_v2'), name('copyreg', '_reconstructor'), name('torch', 'Tensor'), b')', b'}'),
    'size below zero': call(name('torch', 'Size'), b'](J\xff\xff\xff\xffe'),
    'tensor file in a tensor file': call(name('torch.storage', '_load_from_bytes'), b'C\x04PK\x03\x04'),
    'path of a list': call(name('pathlib', 'PosixPath'), b']'),
    'text that is not UTF-8': b'X\x02\x00\x00\x00\xff\xfe',
    'text with half a character': b'X\x03\x00\x00\x00\xed\xa0\x80',
    'raw text with half a character': b'V\\ud800\n',
    'byte string without end': b"S'abc\n",
    'byte string with a wrong escape': b"S'\\u0041'\n",
    'number that is a text': b'Fnothing\n',
    'integer that is a text': b'I1_000\n',
    'recall of nothing': b'h\x07',
    'mark that is missing': b't',
    'value that is missing': b'00000',
    'mark as a value': b'(\x85',
    'mark in the memo': b'(\x94t',
    'mark twice': b'(2t',
    'unknown instruction': b'\xf0',
    'protocol 9': b'\x80\x09N',
    'end without a value': b'0.',
}  # fmt: skip


@pytest.mark.parametrize('trick', list(TRICKS))
def test_tricks(tmp_path, canary, trick):
    for content in shells(TRICKS[trick]).values():
        refused(tmp_path, content)


def persistent_program(state: bytes = b'}', **changes: bytes) -> bytes:
    fields = {'type': text('class'), 'version': b'K\x06', 'module_src': text('raise SystemExit'), 'class_name': text('G')}
    fields |= {'state': state} | changes
    return call(PERSISTENCE, b'}(' + b''.join(text(k) + v for k, v in fields.items()) + b'u')


def test_network_pickle_runs_no_source(tmp_path, canary):
    source = f'import os; os.system({COMMAND!r}); import {CANARY}'
    value = {'G': w.persistent('G', w.module_state({'a': np.ones(2, np.float32)}), source), 'other': w.Name(CANARY, 'run')}
    value['object'] = w.New(w.Name(CANARY, 'Thing'), state={'x': 1})
    raw = read(w.write(tmp_path, 'x.pkl', w.pickled(value)))
    assert raw.tensors.keys() == {'G/a'} and raw.tree['object'].state == {'x': 1}
    assert source not in repr(raw.tree) and CANARY not in sys.modules
    assert any(f'{CANARY}.Thing' in note for note in raw.notes)


@pytest.mark.parametrize(('program', 'message'), [
    (persistent_program(version=b'K\x07'), 'version 7'),
    (persistent_program(version=text('6')), 'version'),
    (persistent_program(type=text('function')), 'not a class'),
    (persistent_program(class_name=text('a b')), 'class name'),
    (persistent_program(state=b'N'), 'state'),
    (PERSISTENCE + b'NtR', 'mark'),
    (PERSISTENCE + b')R', '0 arguments'),
    (persistent_program() + b'}b', 'two states'),
    (persistent_program() + text('a') + b'Ns', 'not a dictionary'),
    (persistent_program() + b'0' + call(name(CANARY, 'run'), text('x')), f'calls {CANARY}.run'),
    (persistent_program() + b'0' + name(CANARY, 'Thing') + b'(K\x01t\x81', 'with arguments'),
    (persistent_program() + b'0' + name(CANARY, 'Thing') + b')\x81Nb', 'not a dictionary'),
    (persistent_program() + b'0' + SYSTEM, 'os.system'),
    (persistent_program() + b'0' + call(name('torch.utils', 'x')), 'torch.utils.x'),
])  # fmt: skip
def test_network_pickle_refusals(tmp_path, canary, program, message):
    refused(tmp_path, b'\x80\x04' + program + b'.', message)


@pytest.mark.parametrize('state', [
    {'_parameters': {'a': 1}}, {'_buffers': {'a': 'x'}}, {'_modules': {'a': 3}}, {'_modules': {'a': w.New(w.Name('a.b', 'C'))}},
    {'_parameters': {'b': w.tensor(np.ones(1))}, '_buffers': {'b': w.tensor(np.ones(1))}},
], ids=str)  # fmt: skip
def test_module_with_odd_parts(tmp_path, state):
    refused(tmp_path, w.pickled({'G': w.persistent('G', w.module_state() | state)}), 'is not a|two tensors')


# Programs that cost more than they look.


def timed(tmp_path, content: bytes, message: str | None = None) -> None:
    """Refused within five seconds and two gigabytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path, content, message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000  # KiB


DOUBLING = {
    'lists': b']\x94' + b''.join(b'](h' + bytes([i]) + b'h' + bytes([i]) + b'e\x94' for i in range(100)),
    'tuples': b')\x94' + b''.join(b'h' + bytes([i]) + b'h' + bytes([i]) + b'\x86\x94' for i in range(100)),
    'dictionaries': b'}\x94' + b''.join(
        b'}(K\x00h' + bytes([i]) + b'K\x01h' + bytes([i]) + b'u\x94' for i in range(100)
    ),
}  # fmt: skip
COLLIDING = b''.join(b'\x8a\x10' + (((1 << 61) - 1) * i).to_bytes(16, 'little') + b'N' for i in range(60_000))
SHORTS = b''.join(b'M' + struct.pack('<H', i) for i in range(60_000))
MEGABYTE = text('x' * 1_000_000) + b'\x94'
FOUR_BYTES = b'X' + struct.pack('<I', 15 << 20) + '\U0001f600'.encode() + b'x' * ((15 << 20) - 4)
DTYPE_STATE = b'(K\x03' + text('|') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
BOMBS = {
    **{f'doubling {k}': (b'(' + v + b't', 'no end in practice') for k, v in DOUBLING.items()},
    'list in itself': (b']\x94h\x00a', 'contains itself'),
    'dictionary in itself': (b'}\x94' + text('a') + b'h\x00s', 'contains itself'),
    'tuple in itself': (b'(]\x94(h\x00t\x94h\x00h\x01at', 'contains itself'),
    'deep lists': (b']' * 300_000 + b'a' * 299_999, 'within each other'),
    'deep tuples': (b')' + b'\x85' * 300_000, 'within each other'),
    'deep marks': (b'(' * 300_000 + b't' * 300_000, 'within each other'),
    'deep tuple as a key': (b'})' + b'\x85' * 300_000 + b'Ns', 'nested tuples'),
    'doubling tuple as a key': (b'(' + DOUBLING['tuples'] + b't0}h\x64Ns', 'nested tuples'),
    'doubling tuple in a set': (b'(' + DOUBLING['tuples'] + b't0(h\x64\x91', 'nested tuples'),
    'many sets': (b'](' + b'\x8f' * 1_500_000 + b'e', 'instructions'),
    'many instructions': (b'N0' * 1_000_000 + b'N', 'instructions'),
    'integer of a megabyte': (b'\x8b' + struct.pack('<i', 1 << 20) + b'\1' * (1 << 20), 'an integer of'),
    'integer of gigabytes': (b'\x8b\xff\xff\xff\x7f', 'an integer of'),
    'integer below nothing': (b'\x8b\xff\xff\xff\xff', 'an integer of'),
    'integer of a million digits': (b'L' + b'9' * 1_000_000 + b'L\n', 'longer than 256'),
    'integers with equal hashes': (b'}(' + COLLIDING + b'u', 'unusual value as a key'),
    'set from a list, again and again': (
        b'](' + SHORTS + b'e\x940' + name('builtins', 'set') + b'\x940' + b'h\x01h\x00\x85R0' * 60_000 + b'N',
        'steps',
    ),
    'path of long texts': (
        MEGABYTE + b'0' + name('pathlib', 'PosixPath') + b'\x940' + (b'h\x01(' + b'h\x00' * 60 + b'tR0') * 200 + b'N',
        'out of proportion',
    ),
    'bytes from text, again and again': (
        MEGABYTE + b'0' + text('latin1') + b'\x940' + name('_codecs', 'encode') + b'\x940'
        + b'h\x02h\x00h\x01\x86R0' * 20_000 + b'N',
        'out of proportion',
    ),
    'long text': (b'\x8d' + struct.pack('<Q', 20 << 20) + b'x' * (20 << 20), 'a text of'),
    'numbers of a megabyte, again and again': (
        call(name('numpy', 'dtype'), text('S999999')) + b'\x94' + DTYPE_STATE + b'0'
        + name('numpy.core.multiarray', 'scalar') + b'\x940B' + struct.pack('<I', 999_999) + b'x' * 999_999 + b'\x940'
        + b'h\x01h\x00h\x02\x86R0' * 20_000 + b'N',
        'out of proportion',
    ),
}  # fmt: skip


@pytest.mark.parametrize('bomb', list(BOMBS))
def test_bombs(tmp_path, bomb):
    program, message = BOMBS[bomb]
    timed(tmp_path, b'\x80\x04' + program + b'.', message)


def test_texts_of_wide_characters(tmp_path):
    """One rare character makes Python store a text in four bytes per character."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(read(w.write(tmp_path, 'x', b'\x80\x04(' + FOUR_BYTES * 4 + b't.')).tree) == 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000


def test_tensors_loaded_again_and_again(tmp_path):
    """One byte string with an archive of much data, read by thousands of calls."""
    inner = w.torch_zip(w.Storage(np.ones(1_000_000, np.bool_)))
    program = b'B' + struct.pack('<I', len(inner)) + inner + b'\x940' + name('torch.storage', '_load_from_bytes') + b'\x940'
    timed(tmp_path, b'\x80\x04' + program + b'h\x01h\x00\x85R0' * 100_000 + b'N.', 'steps')


def test_announced_sizes(tmp_path):
    """Terabytes, announced in a few bytes, at every place that has a size."""
    huge = struct.pack('<Q', 1 << 44)
    programs = [b'\x8e' + huge, b'\x8d' + huge, b'\x96' + huge, b'\x95' + huge, b'B\xff\xff\xff\xff', b'X\xff\xff\xff\xff']
    programs += [b'T\xff\xff\xff\x7f', b'T\xff\xff\xff\xff', b'\x8e' + b'\xff' * 8]
    for program in programs:
        refused(tmp_path, b'\x80\x04' + program + b'N.', 'announces')


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


@pytest.mark.parametrize('arguments', [
    (13, (3, 4), (4, 1)), (11, (3, 4), (4, 1)), (-12, (3, 4), (4, 1)), (1 << 62, (3, 4), (4, 1)), (1 << 70, (3, 4), (4, 1)),
    (12, (3, 5), (4, 1)), (12, (4, 4), (4, 1)), (12, (-3, 4), (4, 1)), (12, (3, 4), (-4, 1)), (12, (3, 4), (4, 1), 1),
    (12, (3, 4), (4, 1), -1), (12, (3, 4), (4,)), (12, (3, 4), (1 << 61, 1)), (12, (1 << 62, 4), (0, 1)), (12, (3, 4), (4, 1), 1 << 61),
    (12, (1 << 20, 1 << 20), (0, 0)), (12, (1 << 33,), (0,)), (12, (1 << 40, 0), (0, 1)), (12, (0, 1 << 50), (1, 1)), (12, (1,) * 40, (1,) * 40),
    (12, (True, 4), (4, 1)), (12, (3.0, 4), (4, 1)), (12, [3, 4], (4, 1)), (12, '34', (4, 1)), (12, None, (4, 1)), (12, (3, 4), (4, True)),
    (12, (3, 4), (4, 1), 0.0),
], ids=str)  # fmt: skip
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
    for content in (w.torch_zip({'a': w.tensor(data)}), w.stream({'a': w.tensor(data)}), w.npy(data), w.safetensors({'a': data})):
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
    refused(tmp_path, good.replace(b'little_endian\x94\x88'.replace(b'\x94', b'q\x02'), b'little_endianq\x02\x89'), 'byte order')


@pytest.mark.parametrize('header', [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }", "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<f4', 'fortran_order': 7, 'shape': (2,), }", "{'descr': '<f4', 'shape': (2,), }", "__import__('os').system('x')",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}", "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,), }", '(' * 900,
    "{'descr': '<V8', 'fortran_order': False, 'shape': (1,), }", "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999), }",
    "{'descr': '<U2', 'fortran_order': False, 'shape': (1,), }",
])  # fmt: skip
def test_npy_headers_that_lie(tmp_path, header):
    raw = header.encode().ljust(117) + b'\n'
    timed(tmp_path, b'\x93NUMPY\x01\x00' + struct.pack('<H', len(raw)) + raw + b'\xff' * 8)


def test_npy_header_longer_than_the_file(tmp_path):
    refused(tmp_path, b'\x93NUMPY\x02\x00' + struct.pack('<I', 1 << 31) + b'x' * 100, 'longer')


def safetensors_of(header: str, data: bytes = b'\0' * 8) -> bytes:
    raw = header.encode()
    return struct.pack('<Q', len(raw)) + raw + data


@pytest.mark.parametrize('header', [
    '{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}', '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
    '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', '{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
    '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
    '{"a":{"dtype":"F32","shape":[-2],"data_offsets":[8,0]}}', '{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
    '{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}', '{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}',
    '{"a":{"dtype":"F32","shape":[true,2],"data_offsets":[0,8]}}', '{"a":{"dtype":"X","shape":[2],"data_offsets":[0,8]}}',
    '{"a":{"dtype":["F32"],"shape":[2],"data_offsets":[0,8]}}', '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}',
    '{"a":{"dtype":"F32","shape":[2]}}', '{"a":NaN}', '{"a":1}', '{"a"', '{}', '{"__metadata__":{"a":1}}', '{"__metadata__":[]}',
    '{"a":' + '[' * 100_000 + '}', '{"a":' + '9' * 10_000 + '}', '{"__metadata__":{"avatar_jax":"{"}}', '{"__metadata__":{"avatar_jax":"[1]"}}',
])  # fmt: skip
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


@pytest.mark.parametrize('content', [
    matrix((1, 3)), matrix((1, 1)), matrix((1, -2)), matrix((1 << 30, 1 << 30)), matrix((0, 1 << 30)), matrix((2,)), matrix((1,) * 40),
    matrix(kind=16), matrix(kind=17), matrix(kind=3), matrix(kind=99), matrix(kind=9, numbers=(9, np.array([1.5, 2]).tobytes())),
    matrix(kind=9, numbers=(9, np.array([1, 300.0]).tobytes())), matrix(numbers=(77, b'\0' * 16)), matrix(numbers=(9, b'\0' * 15)), matrix(name=b'a b'),
    matrix(name=b'../a'), matrix(name=b''), matrix(numbers=None), matrix(rest=w.mat_part(9, b'\0' * 16)), matrix(kind=9, numbers=(2, b'\x07\1'), bits=2),
    matrix(kind=1, shape=(1000, 1000), numbers=None), matrix(kind=2, numbers=(5, struct.pack('<i', 0))), matrix(kind=2, shape=(1 << 20, 1 << 20), numbers=(5, struct.pack('<i', 8)), rest=w.mat_part(1, b'')),
    matrix(kind=2, shape=(1 << 24, 1), numbers=(5, struct.pack('<i', 8)), rest=w.mat_part(1, b'')), matrix(kind=4, numbers=(16, b'\xff\xfe')), matrix(kind=4, numbers=(16, b'abc')),
    matrix(kind=5, shape=(1 << 30, 1 << 15), numbers=(5, b''), rest=w.mat_part(5, b'\0' * 8) + w.mat_part(9, b'')),
    matrix(kind=5, shape=(2, 2), numbers=(5, struct.pack('<i', 7)), rest=w.mat_part(5, struct.pack('<3i', 0, 1, 1)) + w.mat_part(9, np.ones(1).tobytes())),
    matrix(kind=5, shape=(2, 2), numbers=(5, struct.pack('<i', 0)), rest=w.mat_part(5, struct.pack('<3i', 0, 9, 1)) + w.mat_part(9, np.ones(1).tobytes())),
    matrix() + matrix(), w.mat_part(14, b'\0' * 8, 1 << 31), w.mat_part(9, b'\0' * 16), b'\0\0\0', struct.pack('<II', 15, 100) + b'x' * 100,
    w.mat_compressed(b'abc'), w.mat_compressed(w.mat_compressed(matrix())), w.mat_compressed(matrix()[:-4]), w.mat_compressed(matrix() + b'x' * 8), struct.pack('<II', 15, 9) + zlib.compress(matrix())[:9],
    struct.pack('<II', 15, len(zlib.compress(matrix()))) + zlib.compress(matrix())[:-1] + b'\x99', w.mat_compressed(struct.pack('<II', 14, 0xFFFFFFF0) + b'\0' * 1_000_000),
    struct.pack('<I', 9 << 16 | 14) + b'\0' * 12,
], ids=lambda c: str(zlib.crc32(c)))  # fmt: skip
def test_mat_files_that_lie(tmp_path, content):
    timed(tmp_path, w.mat_file(content))


def test_mat_cells_in_cells(tmp_path):
    content = matrix()
    for _ in range(40):
        content = matrix(kind=1, shape=(1, 1), numbers=None, rest=content)
    timed(tmp_path, w.mat_file(content), 'without end')


def test_sparse_matrices_that_lie(tmp_path):
    def sparse(form, **state):
        return w.pickled({'m': w.New(w.Name(f'scipy.sparse.{form}', f'{form}_matrix'), state={f'_{k}' if k == 'shape' else k: v for k, v in state.items()})})

    ones, two = np.ones(2), np.arange(2)
    good = {'shape': (2, 3), 'data': ones, 'indices': two, 'indptr': np.array([0, 1, 2, 2])}
    assert read(w.write(tmp_path, 'x', sparse('csc', **good))).tensors['m'].tolist() == [[1, 0, 0], [0, 1, 0]]
    bad = [{'shape': (10**6, 10**6), 'indptr': np.zeros(10**6 + 1, int)}, {'shape': (2, 2)}, {'shape': (-2, 3)}, {'shape': 5}, {'shape': (2, 3, 1)}]
    bad += [{'indices': np.array([0, 2])}, {'indices': np.array([0, -1])}, {'indices': ones}, {'indices': 'x'}, {'indices': two[:1]}]
    bad += [{'indptr': np.array([0, 2, 1, 2])}, {'indptr': np.array([0, 1, 2, 9])}, {'indptr': np.array([1, 1, 2, 2])}, {'data': None}, {'data': ones[None]}]
    for change in bad:
        timed(tmp_path, sparse('csc', **(good | change)), 'sparse')
    points = {'shape': (2, 3), 'data': ones, 'row': two, 'col': two}
    assert read(w.write(tmp_path, 'x', sparse('coo', **points))).tensors['m'].tolist() == [[1, 0, 0], [0, 1, 0]]
    for change in ({'row': two + 1}, {'col': two + 2}, {'col': two - 1}, {'row': two[:1]}, {'coords': two}):
        timed(tmp_path, sparse('coo', **(points | change)), 'sparse')


# Archives.

NUMBERS = np.arange(3, dtype=np.float32)
GOOD = w.torch_zip({'a': w.tensor(NUMBERS)}, descriptors=False, wide=False)


@pytest.mark.parametrize('member', ['../x.npy', '/x.npy', 'a/../../x.npy', 'a\\..\\x.npy', 'C:/x.npy', 'a/./x.npy', 'x\0.npy', ''])
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
    assert read(w.write(tmp_path, 'one.npz', w.zip_archive([('a.npy', member)], deflate=True))).tensors['a'].size == 150 << 20
    timed(tmp_path, w.zip_archive([(f'{i}.npy', member) for i in range(4)], deflate=True), '1.npy would take.*out of proportion')
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


@pytest.mark.parametrize(('content', 'message'), [
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
    (w.zip_archive([('a/data.pkl', w.pickled({'a': w.tensor(NUMBERS)}, w.Options(outside=True)))]), 'lacks a/data/0'),
    (w.zip_archive([('a/data.pkl', w.pickled({'a': w.tensor(NUMBERS)}, w.Options(outside=True))), ('a/data/0', b'\0' * 12)], deflate=True), 'never'),
    (w.zip_archive([('a/data.pkl', w.pickled({'a': w.tensor(NUMBERS)}, w.Options(outside=True))), ('a/data/0', b'\0' * 16)]), 'announced'),
    (w.zip_archive([('a/', b'x'), ('b.npy', w.npy(NUMBERS))]), 'folder with content'),
], ids=lambda v: v if isinstance(v, str) else '')  # fmt: skip
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


def test_messages_show_no_control_characters(tmp_path):
    said = refused(tmp_path, b'\x80\x04' + stacked('os\x1b[2J\n', 'sys\u202etem') + b'.')
    assert '\x1b' not in said and '\u202e' not in said


def test_limits_are_as_documented():
    """Numbers that other tests and the documentation rely on."""
    assert limits.MAX_BYTES == 8 << 30 and limits.MAX_DEPTH == 100
    budget = limits.Budget(1000, 1 << 20)
    budget.allocate(1 << 20, 'x')
    with pytest.raises(limits.Refused, match='more than the limit'):
        budget.allocate(1, 'x')


@pytest.mark.parametrize('kind', ['list', 'dict', 'module'])
def test_depth_that_is_allowed(tmp_path, kind):
    """Nesting far beyond that of networks is read or refused by its depth, not by an accident of recursion."""
    levels = {'list': 1, 'dict': 1, 'module': 3}[kind]
    value: object = np.zeros(2) if kind == 'module' else 1
    wrap = {'list': lambda v: [v], 'dict': lambda v: {'a': v}, 'module': lambda v: w.persistent('M', {'a': {'b': v}})}[kind]
    for _ in range(0, limits.MAX_DEPTH - levels, levels):
        value = wrap(value)
    read(w.write(tmp_path, 'x', w.pickled(value, w.Options(4))))
    for _ in range(3):
        value = wrap(value)
    refused(tmp_path, w.pickled(value, w.Options(4)), 'within each other')


def test_trailing_file(tmp_path):
    file = io.BytesIO()
    pickle.dump({'a': 1}, file)
    refused(tmp_path, file.getvalue() + SYSTEM + b'.', 'after the end of its pickle')
