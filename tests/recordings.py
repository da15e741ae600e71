"""Recordings of arrays, for tests."""

import numpy as np

from avatar_jax.eval.recorded import Recording
from avatar_jax.ops.windows import window_indices


def recording_of(name, motion, labels, images, masks=None, landmarks=None):
    """A clip of one camera, of a motion, labels [T,25], pictures [T,H,W,3] in [-1,1], masks, landmarks."""
    rows = np.asarray(motion.coefficients, np.float32)

    def row(camera, frame):
        assert camera == 0
        found = {'image': np.rint((images[frame] + 1) * 127.5).astype(np.uint8), 'label': labels[frame]}
        if masks is not None:
            found['mask'] = np.rint(255 * masks[frame]).astype(np.uint8)
        return found | ({} if landmarks is None else {'landmarks': landmarks[frame]})

    return Recording(name, motion, row, lambda camera, frame: rows[window_indices(np.asarray(frame), len(rows))])
