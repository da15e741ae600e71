"""One writer for a folder: refused with the holder's name, taken over from the dead, also from other machines."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from avatar_jax.errors import UserError
from avatar_jax.io import lock
from avatar_jax.io.lock import NAME, FolderLock


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, 'BEAT', 0.05)
    monkeypatch.setattr(lock, 'STALE', 0.6)


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def elsewhere(folder, **changes):
    """A lock as another machine writes it."""
    holder = lock._identity() | {'token': 'other', 'work': 'training', 'host': 'node7', 'machine': 'boot pid:[1]'}
    (folder / NAME).write_text(json.dumps(holder | changes))


def test_a_second_one_is_refused_with_the_first_ones_name(tmp_path):
    folder = tmp_path / 'new' / 'run'
    with FolderLock(folder, 'training'):
        assert files(folder) == [NAME]
        with pytest.raises(UserError, match=f'run: process {os.getpid()} on .* is training there') as caught:
            FolderLock(folder, 'training').__enter__()
        assert '\n' not in str(caught.value)
        assert files(folder) == [NAME]
        with FolderLock(tmp_path / 'other', 'training'):
            pass
    assert files(folder) == []
    with FolderLock(folder, 'training'):
        pass
    with pytest.raises(RuntimeError), FolderLock(folder, 'training'):
        raise RuntimeError
    assert files(folder) == []


def test_another_process_is_refused_and_a_killed_one_is_forgotten(tmp_path):
    program = (
        'import sys, time; from avatar_jax.io.lock import FolderLock\n'
        f'with FolderLock({str(tmp_path)!r}, "training"):\n    print("held", flush=True)\n    time.sleep(60)'
    )
    child = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == 'held\n'
        with pytest.raises(UserError, match=f'process {child.pid} on '):
            FolderLock(tmp_path, 'training').__enter__()
    finally:
        child.kill()
        child.wait()
    assert files(tmp_path) == [NAME]
    with FolderLock(tmp_path, 'training'):
        assert json.loads((tmp_path / NAME).read_text())['pid'] == os.getpid()
    assert files(tmp_path) == []


def test_a_number_that_is_used_again_is_another_process(tmp_path):
    holder = lock._identity()
    (tmp_path / NAME).write_text(json.dumps(holder | {'token': 'old', 'born': '1'}))
    with FolderLock(tmp_path, 'training'):
        assert files(tmp_path) == [NAME]


def test_holders_on_other_machines(tmp_path):
    elsewhere(tmp_path)
    began = time.monotonic()
    stop = threading.Event()

    def renew():
        while not stop.wait(0.05):
            os.utime(tmp_path / NAME)

    beat = threading.Thread(target=renew)
    beat.start()
    try:
        with pytest.raises(UserError, match='on node7'):
            FolderLock(tmp_path, 'training').__enter__()
    finally:
        stop.set()
        beat.join()
    # It dies: found out by waiting, and then at once.
    with FolderLock(tmp_path, 'training'):
        assert time.monotonic() - began < 10
    elsewhere(tmp_path)
    os.utime(tmp_path / NAME, (time.time() - 100,) * 2)
    with FolderLock(tmp_path, 'training'):
        pass
    assert files(tmp_path) == []


@pytest.mark.parametrize('content', [b'', b'{"pid"', b'[]', b'\xff\xfe'])
def test_damaged_locks_are_stale_after_a_while(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    with FolderLock(tmp_path, 'training'):
        assert 'token' in json.loads((tmp_path / NAME).read_text())


def test_a_holder_that_stood_still_notices(tmp_path):
    held = FolderLock(tmp_path, 'training')
    with held:
        held.check()
        elsewhere(tmp_path)
        with pytest.raises(UserError, match='taken over by process .* on node7'):
            held.check()
    assert files(tmp_path) == [NAME], "the other one's lock stays"


def test_many_at_once_give_one_holder(tmp_path):
    elsewhere(tmp_path)
    os.utime(tmp_path / NAME, (time.time() - 100,) * 2)
    held, refused, start = [], [], threading.Barrier(8)

    def attempt():
        mine = FolderLock(tmp_path, 'training')
        start.wait()
        try:
            held.append(mine.__enter__())
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(held) == 1 and len(refused) == 7
    held[0].check()
    held[0].__exit__(None, None, None)
    assert files(tmp_path) == []


def test_folders_that_cannot_be_written_are_said(tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(UserError, match='could not be written'):
        FolderLock(tmp_path / 'file' / 'run', 'training').__enter__()


def test_one_that_comes_late_does_not_take_over_the_new_holder(tmp_path):
    elsewhere(tmp_path)
    os.utime(tmp_path / NAME, (time.time() - 100,) * 2)
    stale = lock._read(tmp_path / NAME)
    with FolderLock(tmp_path, 'training') as first:
        late = FolderLock(tmp_path, 'training')
        assert not late._replace(stale), 'it saw the dead holder, and looks again'
        first.check()
        assert lock._read(tmp_path / NAME)['token'] == first._token and files(tmp_path) == [NAME]
    assert not late._replace(stale) and files(tmp_path) == []
