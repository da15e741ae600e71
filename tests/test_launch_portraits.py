"""Portraits of a command: whose expression they have, and in which basis."""

from types import SimpleNamespace

import numpy as np
import pytest

from avatar_jax.driving.bases import BFM, ICT, PROCEDURAL
from avatar_jax.faces.camera_labels import canonical_label
from avatar_jax.methods import reading
from avatar_jax.methods.pictures import Pictures
from avatar_jax.procedural.motion import speech_motion
from avatar_jax.track.measure import Measured
from launch.common import say


def measured(tmp_path, **parts):
    image = np.full((16, 16, 3), 90, np.uint8)
    return Measured(image, np.ones((16, 16), np.float32), canonical_label(), 'raw', tmp_path / 'a.png', **parts)


@pytest.fixture
def full(tmp_path):
    motion = speech_motion(3, 2)
    return measured(
        tmp_path,
        landmarks=np.ones((68, 2), np.float32),
        expression=np.asarray(motion.expression[0]),
        shape=np.ones(80, np.float32),
        angle=np.asarray(motion.angle[0]),
        translation=np.asarray(motion.translation[0]),
        basis=PROCEDURAL,
        warnings=('look at it',),
    )


def read(found, basis, monkeypatch, own=None):
    """The second picture of a command, in which ``found`` was measured: measured, portrait, where its expression is
    from, and the options that reached the tracker.
    """
    asked = {}

    def measure(path, **options):
        asked.update(options, path=path)
        return SimpleNamespace(best=lambda: found)

    monkeypatch.setattr(reading, 'measure', measure)
    monkeypatch.setattr(Pictures, '_motion_of', lambda self, i, basis: own)
    config = SimpleNamespace(label_mode='cor', basis=basis, img_resolution=64)
    options = {'background': 'black', 'aligned': False, 'landmarks': ['l.txt', 'm.txt'], 'face': '2'}
    one = Pictures(['a.png', 'b.png'], note=say, **options).read(1, config)
    return one.measured, one.source.portraits[0], one.expression, asked


def test_the_weights_say_how_cameras_are_labelled(full, monkeypatch, capsys):
    one, made, said, asked = read(full, PROCEDURAL, monkeypatch)
    assert asked == {
        'path': 'b.png',
        'size': 64,
        'label_mode': 'cor',
        'background': 'black',
        'aligned': False,
        'landmarks': 'm.txt',
        'face': '2',
    }
    assert one is full and 'a.png: look at it' in capsys.readouterr().err
    for name in ('landmarks', 'expression', 'shape', 'angle', 'translation', 'mask'):
        assert (getattr(made, name) == getattr(full, name)).all(), name
    assert said == 'measured (procedural)'


def test_expressions_are_moved_or_said_to_be_missing(full, monkeypatch, capsys, tmp_path):
    _, made, said, _ = read(full, ICT, monkeypatch)
    assert made.basis == ICT and made.shape is None and np.abs(made.expression).max() > 0.01
    assert (made.expression[53:] == 0).all() and (made.angle == full.angle).all()
    assert said == 'measured (procedural), moved to ict-facekit-53'
    capsys.readouterr()
    monkeypatch.setenv('AVATAR_ASSETS', str(tmp_path))
    _, made, said, _ = read(full, BFM, monkeypatch)
    told = capsys.readouterr().err
    assert made.expression is None and made.basis == BFM and 'taken as neutral' in told and BFM in told
    assert said == 'neutral (not measured)'


def test_a_motion_file_comes_first(full, monkeypatch, capsys, tmp_path):
    own = speech_motion(9, 3)
    monkeypatch.setenv('AVATAR_ASSETS', str(tmp_path))
    _, made, said, _ = read(full, BFM, monkeypatch, own.replace(basis=BFM))
    assert (made.expression == own.expression[0]).all() and made.basis == BFM
    assert 'neutral' not in capsys.readouterr().err
    assert said == 'from the motion file'
    bare = measured(tmp_path)
    _, made, _, _ = read(bare, PROCEDURAL, monkeypatch)
    assert made.expression is None and made.landmarks is None and made.angle is None
