"""Which pixels are the person: MediaPipe's selfie segmentation, where its file is here, run by OpenCV.

``avatar-jax assets --get selfie-segmentation`` fetches the file (Apache-2.0, 0.25 MB). The network reads 256x256 pixels
in [0, 1] and gives the probability of a person; it knows real people and their hair. 10 ms of one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.inputs import file_sha256, input_file

ASSET = 'selfie-segmentation'
NAME = "MediaPipe's selfie segmentation"
SIDE = 256
_LOW, _HIGH = 0.2, 0.8  # probabilities that count as nothing and as all


class PersonMask:
    """The network of a file.

    Args:
        path: ``selfie_segmentation.tflite``.

    Raises:
        UserError: no such file, or not one that this OpenCV can run.
    """

    def __init__(self, path: str | Path):
        import cv2

        self.path = input_file(path)
        self.sha256 = file_sha256(self.path)
        try:
            self._network: Any = cv2.dnn.readNetFromTFLite(np.fromfile(self.path, np.uint8))
            self._probability(np.zeros((SIDE, SIDE, 3), np.uint8))
        except (cv2.error, AttributeError, ValueError) as error:
            raise UserError(
                f'{path}: OpenCV {cv2.__version__} cannot run this network; update it with pip install -U '
                'opencv-python-headless, or take the file away'
            ) from error

    def _probability(self, picture: np.ndarray) -> np.ndarray:
        self._network.setInput(np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32) / 255)
        return np.asarray(self._network.forward()).reshape(SIDE, SIDE)

    def masks(self, crops: np.ndarray) -> np.ndarray:
        """Masks [N,S,S] in [0,1] of square pictures [N,S,S,3] uint8, at their own size."""
        import cv2

        out = []
        for crop in crops:
            small = cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            large = cv2.resize(self._probability(small), crop.shape[1::-1], interpolation=cv2.INTER_CUBIC)
            out.append(np.clip((large - _LOW) / (_HIGH - _LOW), 0, 1))
        return np.stack(out)
