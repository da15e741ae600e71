"""What is no human face is not found, or hardly ever graded 'good': animals, drawings, things with two lamps."""

from types import SimpleNamespace

import numpy as np
import pytest

from avatar_jax.bundled.animals import animal, crop
from avatar_jax.errors import UserError
from avatar_jax.models.perception.face_net import crop_matrix
from avatar_jax.procedural import ProceduralHead
from avatar_jax.track.choose import Chooser
from avatar_jax.track.clip import track_clip
from avatar_jax.track.landmark_model import at_landmarks
from avatar_jax.track.network import FaceReader, cut
from avatar_jax.track.observe import observe
from avatar_jax.track.quality import frame_quality, grade
from avatar_jax.track.track import TrackConfig
from tests import nonfaces
from tests.test_track_measure import head

GOOD = 0.92  # probability of a face from which on a frame can be graded 'good'


@pytest.fixture(scope='module')
def reader():
    return FaceReader()


def present(reader, crops):
    return 1 / (1 + np.exp(-reader.run(np.stack(crops)).present))


@pytest.mark.slow
def test_the_network_tells_animals_and_drawings_from_heads(reader):
    rng = np.random.default_rng
    drawn = [crop(animal(77, i), rng([77, i]), reader.config.side) for i in range(64)]
    assert (present(reader, drawn) > GOOD).mean() <= 0.05
    other = [f(s) for s in range(12) for f in (nonfaces.animal, nonfaces.smiley, nonfaces.thing)]
    other = [crop(picture, rng([78, i]), reader.config.side) for i, picture in enumerate(other)]
    assert (present(reader, other) > GOOD).mean() <= 0.1
    heads = [head(seed, yaw) for seed in (1, 2, 3, 4) for yaw in (0.0, 30.0)]
    heads = [cut(pixels, crop_matrix(points, reader.config.side), reader.config.side) for pixels, points, *_ in heads]
    assert (present(reader, heads) > 0.95).all()


@pytest.mark.slow
def test_animals_are_hardly_ever_good_faces(reader):
    basis, chooser, grades = at_landmarks(ProceduralHead()), Chooser('size', reader), []
    pictures = {f'animal {i}': np.pad(animal(79, i), ((96, 96), (96, 96), (0, 0)), mode='edge') for i in range(6)}
    for name, pixels in {**pictures, 'head': head(2)[0], **nonfaces.every(1)}.items():
        frame = SimpleNamespace(time=0.0, pixels=np.repeat(np.repeat(pixels, 2, 0), 2, 1))
        try:
            observed = observe([frame], reader, chooser, careful=True)
            track = track_clip(observed, basis, TrackConfig(), reader.calibration)
        except UserError as error:
            assert 'no face found' in str(error)
            grades.append((name, 'not found'))
            continue
        grades.append((name, grade(float(frame_quality(track)['score'][0]))))
    assert [g for name, g in grades if name == 'head'] == ['good'], grades
    # A few in a hundred of these drawings still pass for faces; nine of ten did before the network had seen animals.
    assert len([name for name, g in grades if g == 'good' and name != 'head']) <= 1, grades


def test_drawings_are_a_function_of_seed_and_number():
    assert (animal(1, 2) == animal(1, 2)).all() and (animal(1, 2) != animal(1, 3)).any()
    picture = crop(animal(1, 2), np.random.default_rng(0))
    assert picture.shape == (128, 128, 3) and picture.dtype == np.uint8 and picture.std() > 5
