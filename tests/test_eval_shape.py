"""The average vertex distance through a head model fitted to landmarks."""

import numpy as np

from avatar_jax.eval import faces, shape
from avatar_jax.faces.camera_labels import label_from_pose, split_label
from avatar_jax.faces.pose import head_to_world
from avatar_jax.procedural import ProceduralHead

HEAD = ProceduralHead()


def pictures(identity, count=3, seed=0, noise=0.0):
    """Landmarks (fractions of the side), labels and expressions of one person."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(-0.4, 0.4, (count, 3)).astype(np.float32)
    labels = np.stack([label_from_pose(a, np.zeros(3, np.float32), 'raw') for a in angles])
    expression = rng.uniform(0, 0.5, (count, 64)).astype(np.float32)
    marks = []
    for label, e in zip(labels, expression, strict=True):
        pose, lens = split_label(label)
        camera = (head_to_world(HEAD.landmarks(identity, e)) - pose[:3, 3]) @ pose[:3, :3]
        marks.append(camera[:, :2] / camera[:, 2:] @ lens[:2, :2].T + lens[:2, 2])
    marks = np.float32(marks)
    return marks + noise * rng.normal(size=marks.shape).astype(np.float32), labels, expression


def test_the_same_person_is_near_another_is_not():
    rng = np.random.default_rng(1)
    anna, ben = rng.normal(size=(2, 80)).astype(np.float32)
    still = np.zeros(64, np.float32)
    truth = HEAD.vertices(anna, still)
    fits = {}
    for name, who, noise in (('exact', anna, 0.0), ('noisy', anna, 0.005), ('ben', ben, 0.0)):
        fits[name] = shape.neutral_vertices(HEAD, *pictures(who, noise=noise, seed=2))
    assert fits['exact'].shape == (3, len(truth), 3)
    apart = faces.vertex_distance(HEAD.vertices(ben, still), truth)
    mean = faces.vertex_distance(HEAD.mean, truth)
    assert faces.vertex_distance(fits['exact'], truth).max() < 0.7 * mean
    # Fits of one person from different sides and with different expressions agree.
    own = faces.vertex_distance(fits['exact'][1:], fits['exact'][0])
    assert own.max() < 0.35 * faces.vertex_distance(fits['ben'], fits['exact'][0]).min()
    assert faces.vertex_distance(fits['noisy'], truth).max() < apart
