"""Every command takes every name, and says it in one line where something is wrong."""

import io
import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from avatar_jax import cli
from avatar_jax.errors import UserError
from avatar_jax.io import atomic, names
from avatar_jax.io.images import read_image, write_png
from avatar_jax.io.inputs import file_sha256
from avatar_jax.io.landmarks import find_landmarks
from avatar_jax.io.motion import load_motion, save_motion
from avatar_jax.io.provenance import Provenance
from avatar_jax.io.sound import SoundTrack
from avatar_jax.io.video import VideoReader, write_video
from avatar_jax.procedural.motion import speech_motion
from tests.nasty_names import NASTY, writable
from tests.test_io_sound import film
from tests.test_io_upright import picture


@pytest.fixture(params=NASTY.values(), ids=NASTY)
def name(request, tmp_path, monkeypatch):
    """A nasty name, given relative to the folder the program runs in."""
    if not writable(tmp_path, request.param):
        pytest.skip('the file system does not take it')
    monkeypatch.chdir(tmp_path)
    return request.param


def test_files_of_every_name_are_written_and_read(name, tmp_path):
    record = Provenance(synthetic=True, sources={name: 'ab'})
    write_png(name + '.png', picture(), record)
    assert read_image(name + '.png').size == (96, 64)
    film(tmp_path / 'sound.mkv', seconds=1)
    (tmp_path / 'sound.mkv').rename(tmp_path / (name + '.mkv'))
    write_video(name + '.mp4', [picture()] * 3, 25, provenance=record, sound=SoundTrack(name + '.mkv'))
    assert len(list(VideoReader(name + '.mp4'))) == 3
    save_motion(name + '.npz', speech_motion(0, 4), record)
    assert load_motion(name + '.npz').num_frames == 4
    atomic.write_json(name + '.json', {'file': name, name: [tmp_path / name]})
    assert json.loads((tmp_path / (name + '.json')).read_text(encoding='utf-8'))['file'] == name
    with atomic.atomic_folder(name + ' folder') as folder:
        (folder / 'x').write_text('x')
    assert find_landmarks(name + '.png') is None
    np.save(name + '.landmarks68.npy', np.zeros((68, 2)))
    assert find_landmarks(name + '.png') is not None
    assert len(file_sha256(name + '.png')) == 64
    assert not [p for p in tmp_path.iterdir() if p.name.endswith('.part')]


def test_messages_are_one_line(name):
    text = names.shown(f'{name}: is wrong')
    assert len(text.splitlines()) == 1 and text.encode('utf-8') and text.isprintable()


@pytest.mark.parametrize(
    'arguments',
    [
        ('track', '@', '--out', 'o'),
        ('track', '@', '--out', 'o', '--landmarks', '@'),
        ('invert', '--image', '@', '--out', 'o', '--weights', '@'),
        ('animate', '--avatar', '@', '--motion', '@', '--out', '@.mp4'),
        ('evaluate', '--out', 'o', '--weights', '@'),
        ('metrics', '--weights', '@', '--out', 'o'),
        ('convert', '@', '--to', 'o'),
        ('train', '--config', '@', '--out', 'o'),
        ('demo', '--weights', '@', '--out', 'o'),
        ('assets', '@'),
        ('ablate', '--out', 'o', '--variants', '@'),
    ],
    ids=lambda a: ' '.join(a[:3]),
)
@pytest.mark.parametrize('exists', [True, False])
def test_every_command_says_in_one_line_what_is_wrong_with_a_name(arguments, exists, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind, name in NASTY.items():
        if not writable(tmp_path, name):
            continue
        path = tmp_path / name
        if exists:
            path.write_bytes(b'no such kind of file ' * 9)
        given = './' + name if name.startswith('-') else name
        status = cli.main([a.replace('@', given) for a in arguments])
        error = capsys.readouterr().err
        assert status == 2 and 'Traceback' not in error, (kind, error)
        assert 'avatar-jax: ' in error and 'two\nlines' not in error and '\a' not in error, (kind, error)
        path.unlink(missing_ok=True)


def test_too_long_names_are_said_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(['track', 'n' * 300 + '.png', 'm' * 300, 'none.png', '--out', 'o']) == 2
    error = capsys.readouterr().err
    assert '3 of 3 inputs were skipped' in error and 'Traceback' not in error
    with pytest.raises(UserError, match='too long'):
        write_png('n' * 300 + '.png', picture())


@pytest.mark.slow
def test_track_writes_results_under_every_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    points = 20 + 24 * rng.uniform(size=(5, 2))
    points[:] = [(34, 40), (62, 40), (48, 55), (38, 68), (58, 68)]
    kept = [n for n in NASTY.values() if writable(tmp_path, n)]
    for name in kept:
        Image.fromarray(np.full((96, 96, 3), 120, np.uint8)).save(tmp_path / (name + '.png'))
        np.save(tmp_path / (name + '.landmarks5.npy'), points)
    given = [('./' + n if n.startswith('-') else n) + '.png' for n in kept]
    assert cli.main(['track', *given, '--out', 'o', '--size', '32', '--no-masks', '--no-overlay']) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(kept), 'one line for each'
    for name in kept:
        assert (tmp_path / 'o' / name / 'motion.npz').is_file(), name
    assert len(json.loads((tmp_path / 'o' / 'report.json').read_text(encoding='utf-8'))['inputs']) == len(kept)


@pytest.mark.parametrize('encoding', ['cp1252', 'ascii', 'utf-8', 'cp932'])
def test_outputs_that_cannot_show_a_name_end_nothing(encoding, monkeypatch):
    module = types.ModuleType('launch_fake')
    module.add_arguments = lambda parser: None

    def run(args):
        for name in NASTY.values():
            print(f'{name}.png: done')
            print(f'{name}: a note', file=sys.stderr)
        raise UserError(f'{NASTY["no utf-8"]} {NASTY["chinese"]}: no')

    module.run = run
    monkeypatch.setitem(sys.modules, 'launch_fake', module)
    monkeypatch.setitem(cli.COMMANDS, 'fake', ('launch_fake', 'a test'))
    for stream in ('stdout', 'stderr'):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), encoding))
    assert cli.main(['fake']) == 2
    sys.stdout.flush(), sys.stderr.flush()
    assert sys.stdout.buffer.getvalue().count(b'.png: done') == len(NASTY)
    assert b'Traceback' not in sys.stderr.buffer.getvalue()
