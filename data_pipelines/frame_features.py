"""What a frame of a TFDS data set of talking heads holds: the same for drawn and for tracked people."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow_datasets as tfds


def frame_features(size: int, jpeg: bool, **more: Any) -> tfds.features.FeaturesDict:
    """Picture, mask, camera label, coefficients, landmarks, and where the frame belongs.

    Args:
        size: side of the pictures. jpeg: how they are stored; else PNG.
        more: further features by name.
    """
    encoding = 'jpeg' if jpeg else 'png'
    return tfds.features.FeaturesDict(
        {
            'image': tfds.features.Image(shape=(size, size, 3), encoding_format=encoding),
            'mask': tfds.features.Image(shape=(size, size, 1), encoding_format='png'),
            'label': tfds.features.Tensor(shape=(25,), dtype=np.float32),
            'coefficients': tfds.features.Tensor(shape=(257,), dtype=np.float32),
            'landmarks': tfds.features.Tensor(shape=(68, 2), dtype=np.float32),
            'identity': tfds.features.Tensor(shape=(192,), dtype=np.float32),
            'person': tfds.features.Scalar(dtype=np.int64),
            'clip': tfds.features.Text(),
            'camera': tfds.features.Scalar(dtype=np.int32),
            'frame': tfds.features.Scalar(dtype=np.int32),
            'fps': tfds.features.Scalar(dtype=np.float32),
            **more,
        }
    )
