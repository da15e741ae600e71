"""NOFA's head translation, reductions of losses and positional encoding against reference numbers."""

import jax.numpy as jnp
import numpy as np

from avatar_jax.faces.camera_labels import intrinsics, make_label
from avatar_jax.faces.translation import pivot_depth, pixel_offset, translate_label, translate_pose
from avatar_jax.losses.codes import code_norm
from avatar_jax.losses.identity import cosine_distance
from avatar_jax.methods.nofa.config import LossConfig
from avatar_jax.methods.nofa.losses import compared, depth_term, latent_term
from avatar_jax.models.encoding import positional_encoding
from tests.comparison import close
from tests.parity.golden import handles


@handles('blocks', 'nofa_maths')
def test_maths(golden):
    c, inp, out = golden.config, golden.inp, golden.out
    offset = pixel_offset(inp['kp_drv'].astype(np.float64), inp['kp_src'].astype(np.float64), c['crop_side_px'])
    pose, pivot = inp['c2w'].astype(np.float64), tuple(c['pivot'])
    depth = pivot_depth(pose, pivot)
    close(depth, out['depth'], rtol=1e-5, what='depth of the pivot')
    close(depth[:, None] * offset / c['f_norm'], out['dxy'], rtol=1e-5, atol=1e-6, what='sideways shift')
    moved = translate_pose(pose, offset, c['f_norm'], pivot=pivot)
    close(moved, out['c2w_corrected'], rtol=1e-5, atol=1e-6, what='corrected poses')
    camera = np.broadcast_to(intrinsics(c['f_norm']), (len(pose), 3, 3))
    labels = translate_label(make_label(pose, camera), offset.astype(np.float32))
    close(labels[:, :16].reshape(-1, 4, 4), out['c2w_corrected'], rtol=1e-5, atol=1e-5, what='corrected labels')

    target, image = (jnp.moveaxis(jnp.asarray(inp[k]), 1, -1) for k in ('It', 'Ih'))
    bound = {'rtol': 1e-5}
    close(compared(LossConfig(), None, image, target), out['mse'], **bound, what='mse')
    offsets = jnp.asarray(inp['ws'] - inp['w_avg'])
    close(latent_term(LossConfig(latent='mse'), offsets), out['latent'], **bound, what='latent, mean square')
    close(latent_term(LossConfig(), offsets), out['latent_l2'], **bound, what='latent, norm')
    close(code_norm(offsets), out['latent_l2'], **bound, what='norm of codes')
    close(depth_term(inp['Vc'], inp['Vm'], c['mu']), out['depth_reg'], **bound, what='volume')
    close(cosine_distance(jnp.asarray(inp['ea']), jnp.asarray(inp['eb'])), out['id'], **bound, what='identity')
    for name in [k for k in out if k.startswith('posenc_L')]:
        octaves = int(name.removeprefix('posenc_L'))
        close(positional_encoding(jnp.asarray(inp['p']), octaves), out[name], atol=2e-5, what=name)
    golden.check_all_used()
