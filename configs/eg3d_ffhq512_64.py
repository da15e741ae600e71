"""EG3D on FFHQ, 512 pixels, raw images of 64 pixels, from scratch: the first of the two published runs.

    avatar-jax train --config configs/eg3d_ffhq512_64.py --out runs/ffhq64 --config.data.folder=FFHQ_512.zip

The original: R1 gamma 1, pose conditioning (swapped in half of the samples after 1 million images), batch 32 on eight
GPUs, 25 million images, no adaptive augmentation, no mirroring during training (the published set contains every
picture's mirror image). ``data.folder`` is EG3D's own zip or folder with ``dataset.json`` (docs/data.md).

Variants: ``rebalanced`` (fine-tuning on the rebalanced set with ``gpc_reg_prob`` 0.8; give ``init`` and
``init_discriminator``), ``bf16`` (convolutions of super-resolution, backbone and discriminator in bfloat16), ``mixed``
(of super-resolution and discriminator alone, which is what the original halves), ``ada``
(adaptive augmentation, for small sets), ``tiny`` (a few thousand parameters on procedural heads, to try the commands).
Join with commas.
"""

from __future__ import annotations

from avatar_jax.configure import run_fields
from configs._eg3d import ffhq


def get_config(variant: str = ''):
    """The ``RunConfig`` of a variant, as a ConfigDict."""
    return run_fields('eg3d', ffhq(variant))
