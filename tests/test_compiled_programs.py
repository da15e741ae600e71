"""Compiled programs are kept for the next command, bounded in size; damaged ones are compiled anew."""

import os
import subprocess
import sys
import time
import zlib

import pytest

from avatar_jax import compiled_programs

PROGRAM = """
from avatar_jax import compiled_programs
print(compiled_programs.keep())
import jax, jax.numpy as jnp
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.jit(lambda x: jnp.tanh(x @ x) + jnp.sort(x, -1))(jnp.ones((8, 8)))
print(hits.count('/jax/compilation_cache/cache_hits'))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('AVATAR_CACHE', str(tmp_path / 'cache'))
    path = tmp_path / 'cache' / 'programs' / compiled_programs._key()
    path.mkdir(parents=True)
    return path


def entry(folder, name, size=100, age=1000.0, whole=True):
    data = zlib.compress(os.urandom(size))
    path = folder / f'{name}-cache'
    path.write_bytes(data if whole else data[: len(data) // 2])
    os.utime(path, (time.time() - age,) * 2)
    return path


def names(folder):
    return sorted(path.name.removesuffix('-cache') for path in folder.glob('*-cache'))


def test_damaged_entries_go(folder, monkeypatch):
    for name, whole in (('a', True), ('b', False)):
        entry(folder, name, whole=whole)
    entry(folder, 'new', whole=False, age=0)  # perhaps still being written
    compiled_programs._remove_damaged(folder)
    assert names(folder) == ['a', 'new']
    os.utime(folder / 'new-cache', (time.time() - 1000,) * 2)
    looked = []
    monkeypatch.setattr(compiled_programs, '_is_whole', lambda data: looked.append(len(data)))
    compiled_programs._remove_damaged(folder)
    assert len(looked) == 1 and names(folder) == ['a'], 'each is unpacked once'
    (folder / 'whole.json').write_text('{')
    compiled_programs._remove_damaged(folder)
    assert len(looked) == 2 and names(folder) == []


def test_what_was_not_used_for_longest_makes_room(folder):
    for age, name in enumerate('abcd'):
        entry(folder, name, 1000, age=100.0 * (age + 1))
    compiled_programs._make_room(folder, 2500)
    assert names(folder) == ['a', 'b']


def test_other_versions_go_after_a_month(folder):
    top = folder.parent
    for name, age in (('old', 40), ('recent', 3)):
        (top / name).mkdir()
        (top / name / 'used').touch()
        os.utime(top / name / 'used', (time.time() - age * 86400,) * 2)
    compiled_programs._remove_old(top, folder)
    assert sorted(p.name for p in top.iterdir()) == sorted([folder.name, 'recent'])


@pytest.mark.parametrize('variable', ['JAX_COMPILATION_CACHE_DIR=elsewhere', 'JAX_ENABLE_COMPILATION_CACHE=false'])
def test_settings_of_jax_come_first(folder, monkeypatch, variable):
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    monkeypatch.setenv(*variable.split('='))
    assert compiled_programs.keep() is None


def test_without_a_place_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    monkeypatch.setenv('AVATAR_CACHE', str(tmp_path / 'file'))
    assert compiled_programs.keep() is None


def flip(path):
    """One byte changed, as a disk does it: size and times stay."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize('packed', ['zlib', 'zstandard'])
def test_a_changed_byte_is_found(folder, packed):
    """Also in what zstandard packs, without a checksum."""
    pack = zlib.compress if packed == 'zlib' else pytest.importorskip('zstandard').ZstdCompressor().compress
    for name in 'ab':
        path = folder / f'{name}-cache'
        path.write_bytes(pack(os.urandom(300)))
        os.utime(path, (time.time() - 1000,) * 2)
    compiled_programs._remove_damaged(folder)
    assert names(folder) == ['a', 'b']
    flip(folder / 'b-cache')
    compiled_programs._remove_damaged(folder)
    assert names(folder) == ['a']


@pytest.mark.parametrize('packed', ['zlib', 'zstandard'])
def test_after_one_that_cannot_be_read(folder, packed):
    """What was written in the last minute and never looked at is looked at, or goes where looking cannot tell."""
    pack = zlib.compress if packed == 'zlib' else pytest.importorskip('zstandard').ZstdCompressor().compress
    path = folder / 'seen-cache'
    path.write_bytes(pack(os.urandom(300)))
    os.utime(path, (time.time() - 1000,) * 2)
    compiled_programs._remove_damaged(folder)
    for name in ('new', 'changed'):
        (folder / f'{name}-cache').write_bytes(pack(os.urandom(300)))
    flip(folder / 'changed-cache')
    compiled_programs._remove_damaged(folder)
    assert names(folder) == ['changed', 'new', 'seen']
    compiled_programs._remove_damaged(folder, again=True)
    assert names(folder) == (['new', 'seen'] if packed == 'zlib' else ['seen'])


@pytest.mark.slow
def test_the_next_process_finds_them(folder):
    environment = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}

    def run():
        done = subprocess.run(
            [sys.executable, '-c', PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        place, hits = done.stdout.split()
        assert place == str(folder)
        return int(hits), done.stderr

    assert run()[0] == 0 and names(folder)
    for path in folder.glob('*-cache'):  # of some time ago
        os.utime(path, (time.time() - 1000,) * 2)
    hits, said = run()
    assert hits >= 1 and not said
    for path in folder.glob('*-cache'):
        flip(path)
    hits, said = run()
    assert hits == 0 and 'Warning' not in said
    assert run()[0] >= 1
