"""HiDe-NeRF's rendered codes and the device's z-buffer against the reference numbers."""

import functools

import jax
import numpy as np
import pytest

from avatar_jax.faces.camera_labels import make_label, raw_pose
from avatar_jax.faces.pose import rotation_matrix, transform
from avatar_jax.methods.hidenerf import secc
from avatar_jax.render import device_rasterizer as device
from avatar_jax.render.rasterizer import SeccConfig
from tests.comparison import close
from tests.parity.golden import handles


def _same_faces(actual, expected, ambiguous, what):
    wrong = (actual != expected) & ~ambiguous
    assert not wrong.any(), f'{what}: {wrong.sum()} of {wrong.size} samples show another triangle'
    assert (expected >= 0).any() and ambiguous.mean() < 0.2, f'{what}: nothing to compare'
    return (actual == expected) & ~ambiguous


@handles('blocks', 'zbuffer')
def test_zbuffer_on_the_device(golden):
    config, triangles = golden.config, golden.inp['faces']
    height, width = config['H'], config['W']
    x, y, z = golden.inp['verts_cam'].astype(np.float64).T
    screens = {
        'ortho': golden.inp['vertices_screen'],
        'persp': np.stack([config['focal'] * x / z + config['cx'], config['focal'] * y / z + config['cy'], z], 1),
    }
    for name, screen in screens.items():
        draw = jax.jit(functools.partial(device.rasterize, height=height, width=width, perspective=name == 'persp'))
        drawn = draw(screen.astype(np.float32), triangles)
        good = _same_faces(np.asarray(drawn.face), golden.out[f'{name}_face'], golden.out[f'{name}_ambiguous'], name)
        close(drawn.depth[good], golden.out[f'{name}_depth'][good], atol=1e-4, what=f'{name} depth')
        close(drawn.barycentric[good], golden.out[f'{name}_bary'][good], atol=1e-4, what=f'{name} weights')
        image = np.asarray(drawn.interpolate(golden.inp['attr'], triangles))
        close(image[good], golden.out[f'{name}_attr'][good], atol=1e-4, what=f'{name} attributes')
    golden.check_all_used()


class _Miniature:
    """The reference file's head behind the interface of the head models."""

    name = basis = 'miniature'
    num_tex = 0

    def __init__(self, given):
        self.mean, self.triangles = given['mean'], given['faces']
        self.bases = [given[k].T.reshape(-1, *self.mean.shape) for k in ('id_basis', 'exp_basis')]
        self.num_id, self.num_exp = (len(b) for b in self.bases)

    def vertices(self, identity, expression):
        moved = [np.tensordot(c, b, 1) for c, b in zip((identity, expression), self.bases, strict=True)]
        return self.mean + moved[0] + moved[1]


@handles('blocks', 'secc')
@pytest.mark.slow
def test_secc_on_the_device(golden):
    config = SeccConfig(
        golden.config['size'], golden.config['focal'], golden.config['center'], golden.config['camera_distance']
    )
    mesh = secc.build_mesh(_Miniature(golden.inp))
    close(mesh.code, golden.out['ncc'], atol=1e-6, what='code')
    shape, expression = golden.inp['alpha'], golden.inp['beta']
    posed = transform(
        secc.points(mesh, shape, expression),
        rotation_matrix(np.float32(golden.config['angles'])),
        np.float32(golden.config['trans']),
    )
    label = make_label(raw_pose(np.float32(golden.config['angles']), np.float32(golden.config['trans'])))

    @jax.jit
    def draw(mesh, shape, expression, label):
        free = secc.points(mesh, shape, expression)
        meshes = {'dri': free, 'can': secc.points(mesh, shape, 0 * expression), 'posed': secc.posed(free, label)}
        fragments = {
            name: device.rasterize(device.to_screen(v, config), mesh.triangles, config.size, config.size)
            for name, v in meshes.items()
        }
        images = {'dri': secc.codes(mesh, shape, expression, config), 'can': secc.canonical(mesh, shape, config)}
        images['posed'] = secc.codes(mesh, shape, expression, config, labels=label)
        return meshes, fragments, images

    meshes, fragments, images = draw(mesh, shape, expression, label)
    close(meshes['posed'], posed, atol=1e-5, what='pose of a label and of angles')
    for name, drawn in fragments.items():
        ambiguous = golden.out[f'ambiguous_{name}']
        good = _same_faces(np.asarray(drawn.face), golden.out[f'face_{name}'], ambiguous, name)
        assert ((np.asarray(drawn.covered) == golden.out[f'mask_{name}']) | ambiguous).all(), name
        close(images[name][good], golden.out[f'secc_{name}'][good], atol=1e-4, what=name)
        if name == 'dri':
            close(drawn.depth[good], golden.out['depth_dri'][good], atol=1e-4, what='depth')
            close(2 * images['dri'][good] - 1, golden.out['secc_pm1_dri'][good], atol=2e-4, what='signed')
    golden.check_all_used()
