"""EG3D on procedural heads at 128 pixels, from the shipped prior: adversarial training after supervised regression.

    python -m data_pipelines.fast_heads --out heads --count 20000 --workers 2
    avatar-jax train --config configs/eg3d_heads.py --out runs/heads --config.data.source=fast_heads \
        --config.data.folder=heads

Without ``data`` options the heads are drawn during the training (slower). The generator has the architecture of the
shipped ``heads128`` and starts from it (``init``: '' for fresh networks, or another weight file or run). The pose of a
procedural head does not depend on the person, so the mapping network does not see the camera. Learning rates are a
quarter of FFHQ's, as the generator is already good and the discriminator is new.

Variants: ``scratch`` (fresh networks, FFHQ's learning rates and blur), ``ada`` (adaptive augmentation), ``bf16``,
``mixed``, ``tiny`` (a few thousand parameters, seconds per iteration, to try the commands). Join with commas.
"""

from __future__ import annotations

from avatar_jax.configure import run_fields
from configs._eg3d import heads


def get_config(variant: str = ''):
    """The ``RunConfig`` of a variant, as a ConfigDict."""
    return run_fields('eg3d', heads(variant))
