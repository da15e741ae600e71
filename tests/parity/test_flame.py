"""FLAME against reference numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.faces.base import MorphableModel
from avatar_jax.faces.flame import FLAME, rodrigues
from tests.parity.golden import close, handles

VALUE, GRADIENT = {'atol': 1e-5, 'rtol': 1e-5}, {'scale': 1e-4}


def model_of(golden):
    return FLAME.from_arrays({k.partition('.')[2]: v for k, v in golden.param.items()}, golden.name)


@handles('gpavatar', 'flame')
def test_flame(golden):
    model, inp, out = model_of(golden), {k: jnp.asarray(v) for k, v in golden.inp.items()}, golden.out
    assert isinstance(model, MorphableModel)

    def run(shape, expression, pose, eye_pose):
        head = model(shape, expression, pose)
        eyes = model(shape, expression, pose, eye_pose).vertices
        inner, full = model.landmarks2d(head.vertices, pose), model.landmarks3d(head.vertices)
        value = (jnp.sum(head.vertices * inp['w_vertices']) + jnp.sum(inner * inp['w_lmk2d'])
                 + jnp.sum(full * inp['w_lmk3d']) + jnp.sum(eyes * inp['w_vertices_eye']))  # fmt: skip
        return value, (head, eyes, inner, full)

    names = ('shape', 'expression', 'pose', 'eye_pose')
    arguments = [inp[k] for k in names]
    (_, (head, eyes, inner, full)), grads = jax.jit(jax.value_and_grad(run, (0, 1, 2, 3), has_aux=True))(*arguments)
    close(head.vertices, out['vertices'], what='vertices', **VALUE)
    close(eyes, out['vertices_eye'], what='with eyes', **VALUE)
    close(inner, out['landmarks2d'], what='moving contour', **VALUE)
    close(full, out['landmarks3d'], what='fixed landmarks', **VALUE)
    close(model.landmarks_mediapipe(head.vertices), out['landmarks_mediapipe'], what='mediapipe', **VALUE)
    close(head.joints_rest, out['joints_rest'], what='rest joints', **VALUE)
    close(head.joints, out['joints_posed'], what='joints', **VALUE)
    close(model.contour_rows(inp['pose']), out['dynamic_row'], what='contour rows')
    close(rodrigues(inp['rotvec']), out['rodrigues'], what='rotations', **VALUE)
    general = model.posed(model.shaped(inp['shape'], inp['expression']), inp['full_pose_general'])
    close(general.vertices, out['vertices_general'], what='all joints', **VALUE)
    close(general.joints, out['joints_posed_general'], what='joints of it', **VALUE)
    for name, grad in zip(names, grads, strict=True):
        close(grad, golden.grad[name], what=f'gradient {name}', **GRADIENT)
    golden.check_all_used()

    close(model.vertices(inp['shape'], inp['expression']), 10 * np.asarray(model.shaped(inp['shape'], inp['expression'])))
    assert model.landmark_ids.shape == (68,) and np.isfinite(np.asarray(grads[2])).all()
