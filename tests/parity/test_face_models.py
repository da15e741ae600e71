"""Face models, alignment, camera labels and motion windows against reference numbers."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.faces import alignment, camera_labels, lighting, pose
from avatar_jax.faces.bfm import BFM, FaceCamera
from avatar_jax.faces.bfm_transfer import parse_expression_pca, transfer
from avatar_jax.faces.ict import ICT
from avatar_jax.ops import coefficients, windows
from tests.comparison import close
from tests.parity import golden as g
from tests.parity.golden import handles

GEOMETRY, PIXELS, GRADIENT = {'atol': 1e-5}, {'atol': 1e-3}, {'scale': 1e-3}


@handles('face_models', 'rotation')
def test_rotation(golden):
    for name, angles in golden.inp.items():
        expected = golden.out['rotation' + name.removeprefix('angles')]
        for xp in (np, jnp):
            close(pose.rotation_matrix(xp.asarray(angles)), expected, what=name, **GEOMETRY)
        close(pose.rotation_matrix(pose.euler_angles(expected)), expected, what=f'{name} inverse', **GEOMETRY)
    golden.check_all_used()


@pytest.mark.slow
@handles('face_models', 'bfm')
def test_bfm(golden):
    cfg = golden.config
    model = BFM.from_arrays(golden.param, recenter=cfg['recenter'])
    camera = FaceCamera(cfg['focal'], cfg['center'], cfg['camera_distance'], tuple(cfg['init_lit']))
    vector = jnp.asarray(golden.inp['coeffs'])
    parts = coefficients.unpack(vector)
    for name in ('id', 'exp', 'tex', 'angle', 'gamma', 'trans'):
        close(getattr(parts, name), golden.out[f'split_{name}'], what=name)
    close(coefficients.pack(parts), golden.inp['coeffs'])

    face = jax.jit(lambda m, c: m.reconstruct(c, camera))(model, vector)
    close(model.mean_shape, golden.out['mean_shape_recentred'], what='mean', **GEOMETRY)
    for name in ('shape', 'rotation', 'transformed', 'vertex', 'texture', 'normal', 'normal_rotated', 'color'):
        close(getattr(face, name), golden.out[name], what=name, **GEOMETRY)
    close(face.projected, golden.out['projected'], what='projected', **PIXELS)
    close(face.landmark, golden.out['landmark'], what='landmark', **PIXELS)
    close(model.landmarks(parts.id, parts.exp), golden.out['shape'][:, np.asarray(model.landmark_ids)], **GEOMETRY)
    close(lighting.SH_A, golden.out['sh_a'], rtol=1e-6)
    close(lighting.SH_C, golden.out['sh_c'], rtol=1e-6)
    close(lighting.sh_basis(face.normal_rotated)[0], golden.out['sh_basis_sample0'], what='sh', **GEOMETRY)
    # The reference matrix multiplies rows of (x, y, depth) from the right.
    f, c = camera.focal, camera.center
    close(np.array([[f, 0, c], [0, f, c], [0, 0, 1]]).T, golden.out['persc_proj'], rtol=1e-6)

    def scalar(c):
        out = model.reconstruct(c, camera)
        parts = ((out.vertex, 'cot_vertex', 1.0), (out.color, 'cot_color', 1.0), (out.landmark, 'cot_lm', 0.05))
        return sum(weight * jnp.sum(value * golden.inp[key]) for value, key, weight in parts)

    value, gradient = jax.jit(jax.value_and_grad(scalar))(vector)
    close(value, golden.out['scalar'], rtol=1e-5, atol=1e-3)
    close(gradient, golden.grad['coeffs'], what='gradient', **GRADIENT)
    golden.check_all_used()


@handles('face_models', 'bfm_transfer')
def test_bfm_transfer(golden):
    inp, n1 = golden.inp, golden.config['n1']
    content = inp['exp_pca_bin'].tobytes()
    expression = parse_expression_pca(content)
    np.testing.assert_array_equal(expression, parse_expression_pca(content, n1))
    arrays = transfer(inp, expression, inp['std_exp'], inp['BFM_front_idx'], inp['BFM_exp_idx_trimIndex'])
    for name, value in arrays.items():
        close(value, golden.out[name], what=name, rtol=1e-5, atol=1e-7)
    golden.check_all_used()


@handles('face_models', 'align')
def test_align(golden):
    inp, out, cfg = golden.inp, golden.out, golden.config
    image, lm5 = inp['image'], inp['lm5']
    close(alignment.STANDARD_POINTS, inp['lm3d_std'], atol=1e-7)
    close(alignment.five_points_3d(inp['lm3d_68']), inp['lm3d_std'], atol=1e-6)
    standard = inp['lm3d_std']
    fit = alignment.solve_pose(inp['lm5_up'], standard)
    close(fit.translation, out['pos_t'].reshape(-1), atol=1e-4)
    close(fit.scale, out['pos_s'], rtol=1e-6)

    for case, size in cfg['cases'].items():
        aligned = alignment.align(image, lm5, size['target_size'], size['rescale_factor'], standard=standard)
        close(aligned.trans_params, out[f'{case}_trans_params'], what=case, rtol=1e-6, atol=1e-5)
        close(aligned.landmarks, out[f'{case}_lm'], what=case, **PIXELS)
        if f'{case}_image' in out:
            close(aligned.image.astype(int), out[f'{case}_image'].astype(int), what=case, atol=2)
    eg3d, center = cfg['cases']['eg3d'], cfg['eg3d_center_crop']
    crop, _ = alignment.eg3d_crop(image, lm5, eg3d['target_size'], eg3d['rescale_factor'], center, cfg['eg3d_output'])
    box = alignment.eg3d_crop_box(eg3d['target_size'], center)
    np.testing.assert_array_equal(box, out['eg3d_crop_box'])
    close(alignment.five_points(inp['lm68_up']), out['extract_5p'], **PIXELS)
    for name in out:
        if name.startswith('eg3d_crop512_stride'):
            step = int(name.removeprefix('eg3d_crop512_stride'))
            close(crop[::step, ::step].astype(int), out[name].astype(int), what=name, atol=2)
        elif name.startswith('estimate_norm_'):
            height = int(name.removeprefix('estimate_norm_'))
            matrix = alignment.recognition_matrix(inp['lm68_up'], height)
            close(matrix, out[name], what=name, rtol=1e-4, atol=1e-4)
    golden.check_all_used()


@handles('face_models', 'camera_labels')
def test_camera_labels(golden):
    inp, out, cfg = golden.inp, golden.out, golden.config
    radius, center, place = cfg['radius'], tuple(cfg['cor']), (cfg['scale'], tuple(cfg['offset']))
    camera = camera_labels.intrinsics(np.float64(cfg['intrinsics_value']))
    assert cfg['z_shift'] == -pose.CAMERA_DISTANCE
    for xp in (np, jnp):
        angle, trans = xp.asarray(inp['angle']), xp.asarray(inp['trans'])
        raw = camera_labels.raw_pose(angle, trans, *place)
        close(raw, out['pose_raw'], what='raw', **GEOMETRY)
        for mode in ('orig', 'cor', 'simplify'):
            normal = camera_labels.normalise_pose(raw, mode, radius, center)
            close(normal, out[f'pose_{mode}'], what=mode, **GEOMETRY)
            close(camera_labels.make_label(normal, camera), out[f'label_{mode}'], what=mode, **GEOMETRY)
        flip = camera_labels.mirror_pose(camera_labels.normalise_pose(raw, 'orig', radius))
        close(flip, out['pose_flip'], what='mirror', **GEOMETRY)
        h_v = xp.asarray(inp['lookat_h_v_over_pi']) * np.float32(np.pi)
        look = camera_labels.look_at(h_v[:, 0], h_v[:, 1], tuple(map(float, inp['lookat_point'])), cfg['radius'])
        close(look, out['lookat_cam2world'], what='look-at', **GEOMETRY)
    k = camera_labels.FOCAL_1024
    close(np.array([[k, 0, 512], [0, k, 512], [0, 0, 1]]), out['intrinsics_raw'])
    close(camera, out['intrinsics'], atol=1e-7)
    for name in [k for k in out if k.startswith('fov_intrinsics_')]:
        degrees = float(name.removeprefix('fov_intrinsics_').replace('_', '.'))
        close(camera_labels.intrinsics_from_fov(degrees), out[name], rtol=1e-6)
    golden.check_all_used()


@handles('face_models', 'otavatar_camera')
def test_otavatar_camera(golden):
    for xp in (np, jnp):
        label = camera_labels.labels_from_conditions(xp.asarray(golden.inp['condition']), release=True)
        close(label, golden.out['label'], **GEOMETRY)
    golden.check_all_used()


@handles('face_models', 'motion_windows')
def test_motion_windows(golden):
    out, cfg = golden.out, golden.config
    for xp in (np, jnp):
        records, source = xp.asarray(golden.inp['coeffs']), xp.asarray(golden.inp['source_coeffs'])
        j, ratio = windows.crop_scale_ratio(records, source, cfg['alpha'])
        assert int(j) == int(out['crop_norm_index'])
        close(xp.reshape(ratio, (1,)), out['crop_norm_ratio'], rtol=1e-6)
        for name in out:
            if not name.startswith('window'):
                continue
            kind, frame = name.rsplit('_', 1)
            channels = 'motion' if kind == 'window70' else 'pirenderer'
            got = windows.motion_windows(records, np.array([int(frame)]), channels, cfg['radius'])
            if kind == 'window73_cross':
                got = windows.scale_crop(got, ratio)
            close(xp.swapaxes(got, -1, -2)[0], out[name], what=name, rtol=1e-6)
    golden.check_all_used()


def ict_asset() -> Path | None:
    """The user's ICT-FaceKit asset: ``$AVATAR_ICT``, else ``assets/ict_facekit.npz`` beside the reference numbers."""
    shared = Path(__file__).resolve().parents[3] / 'shared'
    places = [g.root().parent / 'assets' / 'ict_facekit.npz', shared / 'assets' / 'ict_facekit.npz']
    if 'AVATAR_ICT' in os.environ:
        places.insert(0, Path(os.environ['AVATAR_ICT']))
    return next((p for p in places if p.is_file()), None)


@handles('face_models', 'ict_eval')
def test_ict(golden):
    path = ict_asset()
    if path is None:
        pytest.skip('no ICT-FaceKit asset: set AVATAR_ICT to ict_facekit.npz')
    model = ICT.load(path, frame='native')
    identity, expression, extra = (jnp.asarray(golden.inp[k]) for k in ('identity', 'expression', 'extra'))
    # 150 float32 terms of up to 15 centimetres: a few units in the last place more than 1e-5.
    close(model.landmarks(identity, expression), golden.out['landmarks68'], atol=1e-5, rtol=1e-6)
    points = {
        'vertices': model.vertices(identity, expression),
        'vertices_extra': model.vertices(identity, expression, extra),
    }
    for name in golden.out:
        kind, _, stride = name.partition('_stride')
        if stride:
            close(points[kind][:: int(stride)], golden.out[name], what=name, atol=1e-5, rtol=1e-6)
    golden.check_all_used()
