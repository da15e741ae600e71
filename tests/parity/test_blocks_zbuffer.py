"""Rasterisers against brute-force references: z-buffers, normalised coordinate code, SECC maps."""

import numpy as np

from avatar_jax.render.rasterizer import (
    SeccConfig,
    area_weighted_normals,
    normalised_coordinate_code,
    rasterize,
    secc,
    zbuffer_integer,
)
from tests.comparison import close
from tests.parity.golden import handles


def _same_faces(actual, expected, ambiguous, what):
    wrong = (actual != expected) & ~ambiguous
    assert not wrong.any(), f'{what}: {wrong.sum()} of {wrong.size} samples show another triangle'
    assert (expected >= 0).any() and ambiguous.mean() < 0.2, f'{what}: nothing to compare'
    return (actual == expected) & ~ambiguous


@handles('blocks', 'zbuffer')
def test_zbuffer(golden):
    config, triangles = golden.config, golden.inp['faces']
    height, width = config['H'], config['W']
    camera = golden.inp['verts_cam'].astype(np.float64)
    screens = {
        'ortho': golden.inp['vertices_screen'],
        'persp': np.stack(
            [
                config['focal'] * camera[:, 0] / camera[:, 2] + config['cx'],
                config['focal'] * camera[:, 1] / camera[:, 2] + config['cy'],
                camera[:, 2],
            ],
            1,
        ),
    }
    for name, screen in screens.items():
        drawn = rasterize(screen, triangles, height, width, perspective=name == 'persp')
        good = _same_faces(drawn.face, golden.out[f'{name}_face'], golden.out[f'{name}_ambiguous'], name)
        close(drawn.depth[good], golden.out[f'{name}_depth'][good], atol=1e-4, what=f'{name} depth')
        close(drawn.barycentric[good], golden.out[f'{name}_bary'][good], atol=1e-4, what=f'{name} weights')
        image = drawn.interpolate(golden.inp['attr'], triangles)
        close(image[good], golden.out[f'{name}_attr'][good], atol=1e-4, what=f'{name} attributes')
    golden.check_all_used()


def _rotation(pitch, yaw, roll):
    def about(axis, angle):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        r = np.eye(3)
        r[i, i] = r[j, j] = np.cos(angle)
        r[i, j], r[j, i] = -np.sin(angle), np.sin(angle)
        return r

    return about(2, roll) @ about(1, yaw) @ about(0, pitch)


@handles('blocks', 'secc')
def test_secc(golden):
    given, triangles = golden.inp, golden.inp['faces']
    config = SeccConfig(
        size=golden.config['size'],
        focal=golden.config['focal'],
        centre=golden.config['center'],
        camera_distance=golden.config['camera_distance'],
    )
    mean = given['mean'].astype(np.float64)
    identity = (given['id_basis'].astype(np.float64) @ given['alpha']).reshape(-1, 3)
    expression = (given['exp_basis'].astype(np.float64) @ given['beta']).reshape(-1, 3)
    code = normalised_coordinate_code(mean)
    close(code, golden.out['ncc'], atol=1e-6, what='code')
    driven, canonical = mean + identity + expression, mean + identity
    posed = driven @ _rotation(*golden.config['angles']).T + np.asarray(golden.config['trans'])
    for name, vertices in (('dri', driven), ('can', canonical), ('posed', posed)):
        drawn = secc(vertices, code, triangles, config)
        ambiguous = golden.out[f'ambiguous_{name}']
        good = _same_faces(drawn.face, golden.out[f'face_{name}'], ambiguous, name)
        assert ((drawn.mask == golden.out[f'mask_{name}']) | ambiguous).all(), name
        close(drawn.image[good], golden.out[f'secc_{name}'][good], atol=1e-4, what=name)
        if name == 'dri':
            close(drawn.depth[good], golden.out['depth_dri'][good], atol=1e-4, what='depth')
            signed = secc(vertices, code, triangles, SeccConfig(**{**vars(config), 'signed': True})).image
            close(signed[good], golden.out['secc_pm1_dri'][good], atol=1e-4, what='signed')
    golden.check_all_used()


@handles('face_models', 'ncc_zbuffer')
def test_ncc_zbuffer(golden):
    config, triangles = golden.config, golden.inp['faces']
    height, width = config['h'], config['w']
    code = normalised_coordinate_code(golden.inp['mean_shape'])
    close(code, golden.out['ncc_code'], atol=1e-6, what='code')
    normals = area_weighted_normals(golden.inp['shape'], triangles)
    close(normals, golden.out['area_weighted_normal'], atol=1e-5, what='normals')
    drawn = zbuffer_integer(golden.inp['screen_vertices'], triangles, code, height, width)
    same = drawn.face == golden.out['triangle']
    edge = max(3, round(0.002 * same.size))  # rounding at triangle edges
    assert (~same).sum() <= edge, f'{(~same).sum()} samples show another triangle'
    close(drawn.depth[same], golden.out['depth'][same], atol=1e-5, rtol=1e-6, what='depth')
    close(drawn.image[same], golden.out['ncc_float'][same], atol=1e-5, what='colours')
    off = np.abs(drawn.to_uint8().astype(int) - golden.out['image_uint8'].astype(int))[same]
    assert off.max() <= 1 and (off > 0).mean() <= 0.002, f'8-bit image differs at {(off > 0).sum()} values'
    golden.check_all_used()
