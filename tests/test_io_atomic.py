"""Output files are complete or absent, whatever happens while they are written."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.io import atomic


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_file_appears_complete_and_replaces_the_old_one(tmp_path):
    path = tmp_path / 'new' / 'deep' / 'a.txt'
    atomic.write_text(path, 'one')
    atomic.write_text(path, 'zwei ü')
    assert path.read_text(encoding='utf-8') == 'zwei ü'
    assert names(path.parent) == ['a.txt']


def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    for error in (ValueError('x'), KeyboardInterrupt()):
        with pytest.raises(type(error)), atomic.atomic_path(path) as temporary:
            temporary.write_text('half')
            raise error
    assert path.read_text() == 'old' and names(tmp_path) == ['a.txt']


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_full_or_read_only_disk_is_one_line(tmp_path, code):
    path = tmp_path / 'a.txt'
    with pytest.raises(UserError, match='could not be written') as caught, atomic.atomic_path(path) as temporary:
        temporary.write_text('half')
        raise OSError(code, os.strerror(code))
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)
    assert names(tmp_path) == []


def test_errors_about_other_files_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), atomic.atomic_path(tmp_path / 'out' / 'a.txt'):
        open(tmp_path / 'elsewhere' / 'input.txt')  # noqa: SIM115
    with pytest.raises(OSError, match='Bad address'), atomic.atomic_path(tmp_path / 'out' / 'a.txt'):
        raise OSError(errno.EFAULT, 'Bad address')


def test_things_in_the_way(tmp_path):
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'folder').mkdir()
    with pytest.raises(UserError, match='in the way|not a folder'):
        atomic.write_text(tmp_path / 'file' / 'a.txt', 'x')
    with pytest.raises(UserError, match='folder of that name'):
        atomic.write_text(tmp_path / 'folder', 'x')
    with pytest.raises(UserError, match='in the way'):
        atomic.output_folder(tmp_path / 'file')
    with pytest.raises(UserError, match='not a folder'), atomic.atomic_folder(tmp_path / 'file'):
        pass
    with pytest.raises(UserError, match='name is too long'):
        atomic.write_text(tmp_path / ('n' * 300), 'x')
    assert names(tmp_path) == ['file', 'folder'] and names(tmp_path / 'folder') == []


def test_long_names_that_fit_are_written(tmp_path):
    atomic.write_text(tmp_path / ('ü' * 120), 'x')  # 240 bytes: the temporary name must not be longer than allowed
    assert len(names(tmp_path)) == 1


def test_folder_is_replaced_as_a_whole(tmp_path):
    with atomic.atomic_folder(tmp_path / 'avatar') as folder:
        (folder / 'a').write_text('1')
        (folder / 'b').write_text('1')
    with pytest.raises(ValueError, match='stop'), atomic.atomic_folder(tmp_path / 'avatar') as folder:
        (folder / 'a').write_text('2')
        raise ValueError('stop')
    assert names(tmp_path) == ['avatar'] and names(tmp_path / 'avatar') == ['a', 'b']
    with atomic.atomic_folder(tmp_path / 'avatar') as folder:
        (folder / 'c').write_text('3')
    assert names(tmp_path) == ['avatar'] and names(tmp_path / 'avatar') == ['c']


def test_output_folder_is_made_and_left_empty(tmp_path):
    assert atomic.output_folder(tmp_path / 'a' / 'b').is_dir()
    assert names(tmp_path / 'a' / 'b') == []


def test_json_of_arrays_paths_and_nan(tmp_path):
    value = {'a': np.float32(0.5), 'b': np.arange(3), 'c': tmp_path, 'd': float('nan'), 'e': (1, True, None), 3: np.nan}
    atomic.write_json(tmp_path / 'a.json', value)
    back = json.loads((tmp_path / 'a.json').read_text())
    assert back == {'a': 0.5, 'b': [0, 1, 2], 'c': str(tmp_path), 'd': None, 'e': [1, True, None], '3': None}
    with pytest.raises(TypeError, match='no JSON form'):
        atomic.json_text({'x': object()})


@pytest.mark.parametrize('kind', ['limit', 'terminate'])
def test_real_process_leaves_nothing(tmp_path, kind):
    """A file-size limit stands for a full disk; SIGTERM arrives in the middle of writing."""
    program = textwrap.dedent(f"""
        import os, resource, signal, sys
        import avatar_jax.cli as cli
        from avatar_jax.io import atomic
        import types
        def run(args):
            with atomic.atomic_path({str(tmp_path / 'a.bin')!r}) as path:
                with open(path, 'wb') as file:
                    for _ in range(100):
                        file.write(bytes(1000))
                        file.flush()
                        if {kind!r} == 'terminate':
                            os.kill(os.getpid(), signal.SIGTERM)
        module = types.ModuleType('fake'); module.run = run; module.add_arguments = lambda parser: None
        sys.modules['launch_fake'] = module
        cli.COMMANDS['fake'] = ('launch_fake', '')
        if {kind!r} == 'limit':
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        sys.exit(cli.main(['fake']))
    """)
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=120, check=False)
    assert 'Traceback' not in done.stderr
    assert done.returncode == (2 if kind == 'limit' else 128 + signal.SIGTERM)
    assert kind != 'limit' or 'could not be written' in done.stderr
    assert names(tmp_path) == []
