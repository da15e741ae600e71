"""EG3D on FFHQ, 512 pixels, raw images of 64 growing to 128 pixels: the second of the two published runs.

    avatar-jax train --config configs/eg3d_ffhq512_128.py --out runs/ffhq128 --config.data.folder=FFHQ_512.zip \
        --config.init=runs/ffhq64

The original: 2 million images; over the first million the raw image grows from 64 to 128 pixels; no blur, no fade of
the pose conditioning and no ramp of the average, as in every training that continues from a finished network. ``init``
is a run of ``eg3d_ffhq512_64.py``, or a weight file of its generator, then with ``init_discriminator``.

Each raw size compiles a program of its own, so the size grows in steps of 8 pixels (``loss.resolution_multiple``) and
not pixel by pixel. Variants as in ``eg3d_ffhq512_64.py``.
"""

from __future__ import annotations

from avatar_jax.configure import run_fields
from configs._eg3d import ffhq


def get_config(variant: str = ''):
    """The ``RunConfig`` of a variant, as a ConfigDict."""
    return run_fields('eg3d', ffhq(variant, final=128))
