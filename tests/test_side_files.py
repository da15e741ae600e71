"""What lies beside a picture or a video: landmark files bind by their name, everything else is a guess."""

import json
from pathlib import Path

import numpy as np
import pytest

from avatar_jax import cli
from avatar_jax.errors import UserError
from avatar_jax.faces.alignment import five_points
from avatar_jax.io.landmarks import find_landmarks, side_file
from tests.test_track_measure import head, save
from tests.test_track_measure import portrait as prepare

CASES = Path(__file__).parents[1] / '../shared/cases'
POINTS = np.array([(150.8, 154.8), (222.4, 155.4), (193.5, 195.7), (159.2, 233.3), (216.5, 232.5)])


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('a.txt', b'a photo of sks woman, brown hair, studio light'),
        ('a.txt', b'1\n00:00:01,000 --> 00:00:02,500\nHello.\n'),
        ('a.txt', b''),
        ('a.txt', b'3'),
        ('a.txt', bytes(range(256))),
        ('a.npy', b'features'),
        ('a.png.txt', b'caption'),
        ('a.pts', b'points'),
    ],
)
def test_other_files_of_the_same_name_are_ignored_with_a_note(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = side_file(tmp_path / 'a.png')
    assert found.path is None and name in found.notes[0] and 'ignored' in found.notes[0]
    # A good one is found all the same.
    np.savetxt(tmp_path / 'a.landmarks5.txt', POINTS)
    assert side_file(tmp_path / 'a.png').path == tmp_path / 'a.landmarks5.txt'


def test_guesses_that_are_landmarks_are_used(tmp_path):
    np.savetxt(tmp_path / 'a.txt', POINTS)
    assert side_file(tmp_path / 'a.png') == side_file(tmp_path / 'a.jpg') and side_file(tmp_path / 'a.png').guessed
    (tmp_path / 'b.json').write_text(json.dumps(POINTS.tolist()))
    assert side_file(tmp_path / 'b.png').path is None
    np.save(tmp_path / 'c.npy', np.zeros((100, 80)))
    np.savetxt(tmp_path / 'c.png.txt', POINTS)
    assert find_landmarks(tmp_path / 'c.png') == tmp_path / 'c.png.txt'


@pytest.mark.slow
def test_pictures_with_captions_and_with_other_points(tmp_path):
    pixels, landmarks, _, _ = head()
    path = save(tmp_path / 'a.png', pixels)
    (tmp_path / 'a.txt').write_text('a photo of sks woman')
    found = prepare(path, size=64)
    assert any('a.txt' in w and 'ignored' in w for w in found.warnings)
    np.savetxt(tmp_path / 'a.txt', five_points(landmarks) + 1000)
    found = prepare(path, size=64)
    assert any('do not lie on the picture' in w for w in found.warnings)
    np.savetxt(tmp_path / 'a.txt', five_points(landmarks))
    assert not prepare(path, size=64).warnings
    # Files that bind, or are given, are refused.
    (tmp_path / 'a.landmarks68.txt').write_text('a photo of sks woman')
    with pytest.raises(UserError, match='not a landmark file'):
        prepare(path, size=64)
    with pytest.raises(UserError, match='not a landmark file'):
        prepare(path, size=64, landmarks=tmp_path / 'a.landmarks68.txt')


@pytest.mark.slow
def test_tracking_beside_captions_and_other_numbers(tmp_path, capsys):
    pixels, landmarks, _, _ = head()
    options = ('--out', str(tmp_path / 'o'), '--size', '64', '--no-masks', '--no-overlay')
    for name in ('a', 'b', 'c', 'd'):
        save(tmp_path / f'{name}.png', pixels)
    (tmp_path / 'a.txt').write_text('a photo of sks woman')
    np.save(tmp_path / 'b.npy', np.zeros((7, 68, 2)))  # of seven frames
    np.savetxt(tmp_path / 'c.txt', five_points(landmarks) + 1000)
    np.savetxt(tmp_path / 'd.txt', five_points(landmarks))
    assert cli.main(['track', *(str(tmp_path / f'{n}.png') for n in 'abcd'), *options]) == 0
    error = capsys.readouterr().err
    assert error.count('ignored') == 3 and '7 frames' in error
    sources = {n: json.loads((tmp_path / 'o' / n / 'report.json').read_text()) for n in 'abcd'}
    assert all(any('ignored' in text for text in sources[n]['warnings']) for n in 'abc')
    assert sources['d']['warnings'] == []


@pytest.mark.skipif(not CASES.is_dir(), reason='the shared cases are not here')
@pytest.mark.slow
def test_shared_caption():
    found = prepare(CASES / 'caption' / 'person.png', size=64)
    assert any('person.txt' in w for w in found.warnings)
