"""From a photograph to an aligned portrait: faces, landmarks, crop, camera, background, quality.

``prepare(path)`` does all of it. OpenCV and Pillow are imported where they are used.
"""

from avatar_jax.photo.prepare import Prepared, prepare

__all__ = ['Prepared', 'prepare']
