"""A tracker that needs no networks, in a module of its own, so that other processes can import it."""

import os
import signal
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.track.measured import MeasuredClip, Shown


class GreyTracker:
    """Finds a face in every frame that is not black; expression 0 is the frame's brightness, the head turns with it."""

    name, basis, parts = 'grey 1', 'procedural', ('pose', 'expression', 'identity', 'landmarks')

    def __init__(self):
        self.clips = []

    def __call__(self, frames, *, size, label_mode, **options):
        level = [frame.pixels.mean() / 255 for frame in frames]
        self.clips.append(str(frames.path))
        level = np.array(level)
        found = level > 0.04
        if not found.any():
            raise UserError(f'{frames.path}: no face found in any of {len(level)} frames')
        coefficients = np.zeros((len(level), 257), np.float32)
        coefficients[:, 0], coefficients[:, 80], coefficients[:, 225] = 0.5, level, level - 0.5
        labels = label_from_pose(coefficients[:, 224:227], coefficients[:, 254:257], label_mode)
        shots = (level > 0.9).astype(int) if level.max() > 0.9 else None  # a cut to somebody bright
        landmarks = np.tile(np.linspace(0, size - 1, 68)[:, None], (len(level), 1, 2)).reshape(-1, 68, 2)

        def pictures(wanted, on_frame):
            for k, value in enumerate(level):
                grey = np.full((size, size, 3), round(255 * value), np.uint8)
                yield Shown(k, grey, np.full((size, size), 200 / 255, np.float32))

        return MeasuredClip(
            frames.path,
            coefficients,
            labels.astype(np.float32),
            landmarks.astype(np.float32),
            found,
            float(frames.fps),
            self.basis,
            self.parts,
            pictures,
            notes=('grey',),
            segment=shots,
        )


class LoggingTracker(GreyTracker):
    """Writes a line for each clip that it is given, with the number of the process, and kills the process that gets the
    clip ``deadly``.
    """

    def __init__(self, log, deadly=None):
        super().__init__()
        self.log, self.deadly = str(log), deadly

    def __call__(self, frames, **options):
        stem = Path(frames.path).stem
        with open(self.log, 'a') as file:
            file.write(f'{stem} {os.getpid()}\n')
        if stem == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(frames, **options)
