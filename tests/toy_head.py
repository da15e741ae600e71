"""A head model of five identity and six expression numbers, and clips of it: fitting is quick and the truth is
known.
"""

import numpy as np

from avatar_jax.track.camera import from_translation
from avatar_jax.track.placing import project_clip


class ToyHead:
    """The inner face of the procedural head moved by a few of its own shapes; linear, like every model."""

    name, basis = 'toy', 'toy'
    num_id, num_exp, num_tex = 5, 6, 0

    def __init__(self):
        from avatar_jax.procedural import ProceduralHead

        head = ProceduralHead()
        names = ('jaw_open', 'smile_l', 'smile_r', 'brow_inner_up', 'blink_l', 'blink_r')
        zero_id, zero_exp = np.zeros(80, np.float32), np.zeros(64, np.float32)
        self.mean = head.vertices(zero_id, zero_exp)
        rows = np.eye(80, dtype=np.float32)[:5]
        self._id = np.stack([head.vertices(r, zero_exp) for r in rows]) - self.mean
        rows = np.eye(64, dtype=np.float32)[[head.expression_names.index(n) for n in names]]
        self._exp = np.stack([head.vertices(zero_id, r) for r in rows]) - self.mean
        self.triangles, self.landmark_ids = head.triangles, head.landmark_ids

    def vertices(self, identity, expression):
        return self.mean + np.tensordot(identity, self._id, 1) + np.tensordot(expression, self._exp, 1)

    def albedo(self, texture):
        return np.full(self.mean.shape, 0.7, np.float32)

    def landmarks(self, identity, expression):
        return self.vertices(identity, expression)[self.landmark_ids]


def toy_clip(head, frames=40, seed=0, focal=1200.0, size=(640, 480)):
    """(landmarks [T,68,2] integers at pixel centres, expression [T,6], angle [T,3], translation [T,3], identity
    [5]).
    """
    rng = np.random.default_rng(seed)
    t = np.arange(frames) / 25
    wave = np.sin(2 * np.pi * rng.uniform(0.4, 1.5, 9) * t[:, None] + rng.uniform(0, 6, 9))
    expression = 0.8 * wave[:, :6]
    angle = wave[:, 6:] * np.array([0.15, 0.35, 0.12])
    translation = np.stack([0.3 * np.sin(t), 0.1 * np.cos(2 * t), 0 * t], 1)
    identity = rng.normal(size=5)
    points = np.stack([head.landmarks(identity, e) for e in expression])
    seen = project_clip(points, from_translation(angle, translation), focal, np.array(size) / 2)
    return seen - 0.5, expression, angle, translation, identity
