"""FLAME against reference numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.faces.base import MorphableModel
from avatar_jax.faces.flame import FLAME, rodrigues
from avatar_jax.track.camera_fit import Detected, FitConfig, first_camera, fit_camera, landmarks_of, project, terms
from tests.comparison import close
from tests.parity.golden import handles, load

VALUE, GRADIENT = {'atol': 1e-5, 'rtol': 1e-5}, {'scale': 1e-4}


def model_of(golden):
    return FLAME.from_arrays({k.partition('.')[2]: v for k, v in golden.param.items()}, golden.name)


@pytest.mark.slow
@handles('gpavatar', 'flame')
def test_flame(golden):
    model, inp, out = model_of(golden), {k: jnp.asarray(v) for k, v in golden.inp.items()}, golden.out
    assert isinstance(model, MorphableModel)

    def run(shape, expression, pose, eye_pose):
        head = model(shape, expression, pose)
        eyes = model(shape, expression, pose, eye_pose).vertices
        inner, full = model.landmarks2d(head.vertices, pose), model.landmarks3d(head.vertices)
        value = (
            jnp.sum(head.vertices * inp['w_vertices'])
            + jnp.sum(inner * inp['w_lmk2d'])
            + jnp.sum(full * inp['w_lmk3d'])
            + jnp.sum(eyes * inp['w_vertices_eye'])
        )
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

    close(
        model.vertices(inp['shape'], inp['expression']), 10 * np.asarray(model.shaped(inp['shape'], inp['expression']))
    )
    assert model.landmark_ids.shape == (68,) and np.isfinite(np.asarray(grads[2])).all()


@pytest.mark.slow
@handles('gpavatar', 'tracker_fit')
def test_camera_fit(golden):
    model = model_of(load(golden.path.with_name('flame.npz')))
    inp, out, cfg = {k: jnp.asarray(v) for k, v in golden.inp.items()}, golden.out, golden.config
    weights = {
        'sparse': 'lmk68',
        'contour': 'oval',
        'dense': 'dense',
        'mouth': 'mouth',
        'lids': 'eye',
        'expression': 'exp',
    }
    config = FitConfig(
        cfg['focal'], cfg['image'], cfg['verts_scale'], **{k: cfg['loss_weights'][v] for k, v in weights.items()}
    )
    start = jax.jit(lambda *a: first_camera(model, *a, config))
    draft, first, head = start(inp['shape'], inp['expression'], inp['emoca_pose'], inp['lmks_dense'])
    close(draft, out['initial_transform_unscaled'], atol=2e-5)
    close(first, out['initial_transform'], atol=2e-5)
    close(head.expression, out['expression_after'])
    close(head.pose, out['pose_after'])
    sparse, dense = landmarks_of(model, head, config.scale)
    close(project(sparse, first, config.focal, config.size), out['projected68_initial'], atol=3e-3)
    close(project(dense, first, config.focal, config.size), out['projected_dense_initial'], atol=3e-3)
    found = Detected(inp['lmks68'], inp['lmks_dense'])
    at_start = terms(model, head, first, found, config)
    for name, theirs in (*weights.items(), ('sparse', '68')):
        if f'loss_{theirs}' in out:
            close(at_start[name], out[f'loss_{theirs}'], rtol=1e-4, what=name)
    fit = jax.jit(lambda steps: fit_camera(model, head, first, found, dataclasses.replace(config, steps=steps)))
    for name in [k for k in out if k.startswith('transform_after_')]:
        steps = int(name.removeprefix('transform_after_'))
        # Rounding differences grow with the steps: the first follow exactly, the last end at the same place.
        close(fit(jnp.int32(steps)), out[name], atol=1e-4 if steps < 10 else 5e-3 if steps < 100 else 3e-2, what=name)
    golden.check_all_used()
