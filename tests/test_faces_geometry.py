"""Face coefficients, poses, camera labels, windows and models: meaning, consistency and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.faces import base, camera_labels, lighting, pose
from avatar_jax.faces.bfm import BFM
from avatar_jax.faces.bfm_transfer import parse_expression_pca, transfer_files
from avatar_jax.faces.ict import HEAD_OFFSET, HEAD_SCALE, ICT
from avatar_jax.faces.recon import ReconNet
from avatar_jax.ops import coefficients, windows

rng = np.random.default_rng


def project_label(label, world):
    """Normalised image coordinates (x right, y down, 0..1) of world points [N, 3] under one label [25]."""
    matrix, k = camera_labels.split_label(label)
    camera = (world - matrix[:3, 3]) @ matrix[:3, :3]
    image = camera @ k.T
    return image[:, :2] / image[:, 2:]


def tiny_bfm(vertices=40, faces=60, seed=0):
    """Arrays of a random model with the keys of the real file."""
    r = rng(seed)

    def normal(*shape):
        return r.standard_normal(shape).astype(np.float32)

    tri = np.stack([r.permutation(vertices)[:3] + 1 for _ in range(faces)]).astype(np.float32)
    return {
        'meanshape': normal(1, 3 * vertices),
        'idBase': normal(3 * vertices, 80),
        'exBase': normal(3 * vertices, 64),
        'meantex': 128 + 20 * normal(1, 3 * vertices),
        'texBase': normal(3 * vertices, 80),
        'tri': tri,
        'point_buf': r.integers(1, faces + 2, (vertices, 8)).astype(np.float32),
        'tri_mask2': r.integers(1, 11, (5, 3)).astype(np.float32),
        'frontmask2_idx': (r.permutation(vertices)[:10] + 1).astype(np.float32)[:, None],
        'skinmask': np.ones((1, vertices), np.float32),
        'keypoints': r.integers(1, vertices + 1, (1, 68)).astype(np.float32),
    }


def test_coefficients_round_trip_and_widths():
    vector = rng(0).standard_normal((4, 260)).astype(np.float32)
    parts = coefficients.unpack(vector)
    np.testing.assert_array_equal(coefficients.pack(parts), vector[:, :257])
    np.testing.assert_array_equal(coefficients.pack_record(parts, coefficients.crop_of(vector)), vector)
    assert isinstance(coefficients.pack(parts), np.ndarray)
    assert isinstance(coefficients.pack(coefficients.unpack(jnp.asarray(vector))), jax.Array)
    assert coefficients.Coefficients.zeros(3).gamma.shape == (3, 27)
    with pytest.raises(ValueError, match='257'):
        coefficients.unpack(vector[:, :200])
    with pytest.raises(ValueError, match='260'):
        coefficients.crop_of(vector[:, :257])


def test_rotation_directions():
    nose = np.array([0.0, 0.0, 1.0])
    a = 0.3
    for angles, expected in (
        ([a, 0, 0], [0, -np.sin(a), np.cos(a)]),  # positive pitch looks down
        ([0, a, 0], [np.sin(a), 0, np.cos(a)]),  # positive yaw looks towards image right
        ([0, 0, a], [0, 0, 1]),
    ):
        np.testing.assert_allclose(nose @ pose.rotation_matrix(np.array(angles)), expected, atol=1e-12)
    right = np.array([1.0, 0, 0]) @ pose.rotation_matrix(np.array([0, 0, a]))
    np.testing.assert_allclose(right, [np.cos(a), np.sin(a), 0], atol=1e-12)  # counter-clockwise, y up


def test_label_sees_what_the_regressor_camera_sees():
    """A head point lands in the same place through the pose and through the label (up to the fixed crop scale)."""
    r = rng(1)
    angle, trans = r.uniform(-0.5, 0.5, 3), r.uniform(-0.2, 0.2, 3)
    head = r.uniform(-1, 1, (20, 3))
    camera = pose.to_camera(pose.transform(head, pose.rotation_matrix(angle), trans))
    label = camera_labels.label_from_pose(angle, trans, 'raw').astype(np.float64)
    seen = project_label(label, pose.head_to_world(head))
    expected = 0.5 + camera_labels.FOCAL * np.stack([camera[:, 0], -camera[:, 1]], 1) / camera[:, 2:]
    np.testing.assert_allclose(seen, expected, atol=1e-5)
    np.testing.assert_allclose(pose.world_to_head(pose.head_to_world(head)), head, atol=1e-12)


def test_pose_from_label_inverts():
    r = rng(2)
    angle, trans = r.uniform(-1, 1, (5, 3)), r.uniform(-0.5, 0.5, (5, 3))
    back_angle, back_trans = camera_labels.pose_from_label(
        camera_labels.label_from_pose(angle, trans, 'raw').astype(np.float64)
    )
    np.testing.assert_allclose(back_angle, angle, atol=1e-5)
    np.testing.assert_allclose(back_trans, trans, atol=1e-4)


def test_normalised_distances_and_mirror():
    r = rng(3)
    raw = camera_labels.raw_pose(r.uniform(-0.5, 0.5, (6, 3)), r.uniform(-0.3, 0.3, (6, 3)))
    orig, cor = (camera_labels.normalise_pose(raw, m)[:, :3, 3] for m in ('orig', 'cor'))
    np.testing.assert_allclose(np.linalg.norm(orig, axis=1), 2.7, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(cor - camera_labels.COR_CENTER, axis=1), 2.7, rtol=1e-9)
    assert camera_labels.normalise_pose(raw, 'raw') is raw
    with pytest.raises(ValueError, match='orig'):
        camera_labels.normalise_pose(raw, 'other')
    label = camera_labels.make_label(raw)[0].astype(np.float64)
    points = r.uniform(-0.3, 0.3, (10, 3))
    seen = project_label(label, points)
    mirrored = project_label(camera_labels.mirror_label(label).astype(np.float64), points * [-1, 1, 1])
    np.testing.assert_allclose(mirrored, [1, 0] + seen * [-1, 1], atol=1e-5)


def test_yaw_label_turns_around_the_pivot():
    label = camera_labels.label_from_pose(np.zeros(3), np.zeros(3))
    pivot = np.array([camera_labels.PIVOT])
    start = camera_labels.split_label(label)[0][:3, 3] - pivot
    turned = camera_labels.yaw_label(label, np.float32(np.deg2rad(30)))
    position = camera_labels.split_label(turned)[0][:3, 3] - pivot
    assert position[0, 0] > 1.0
    np.testing.assert_allclose(np.linalg.norm(position), np.linalg.norm(start), rtol=1e-6)
    np.testing.assert_allclose(project_label(turned, pivot), project_label(label, pivot), atol=1e-5)
    both = camera_labels.yaw_label(label, np.deg2rad(np.float32([-30, 30])))
    np.testing.assert_allclose(both[1], turned, atol=1e-6)
    np.testing.assert_allclose(both[0], camera_labels.mirror_label(both[1]), atol=1e-5)


def test_a_single_frame_condition_uses_itself():
    condition = np.float32([[0.1, -0.2, 0.3, 0.01, 0.02, -4.5, 1100]])
    label = camera_labels.labels_from_conditions(condition)
    repeated = camera_labels.labels_from_conditions(np.repeat(condition, 3, 0))
    np.testing.assert_allclose(label[0], repeated[0], atol=1e-6)
    assert np.isnan(camera_labels.labels_from_conditions(condition, release=True)[:, :12]).any()
    traced = jax.jit(camera_labels.labels_from_conditions)(jnp.asarray(np.repeat(condition, 3, 0)))
    np.testing.assert_allclose(traced, repeated, atol=1e-5)


def test_windows_layout_and_refusals():
    records = np.arange(5 * 260, dtype=np.float32).reshape(5, 260)
    first = windows.motion_windows(records)
    assert first.shape == (5, 27, 70)
    np.testing.assert_array_equal(first[2, 13], windows.descriptors(records)[2])
    np.testing.assert_array_equal(first[0, 0], windows.descriptors(records)[0])
    np.testing.assert_array_equal(first[4, 26], windows.descriptors(records)[4])
    assert windows.motion_windows(records, channels='expression').shape == (5, 27, 64)
    assert windows.motion_windows(records, channels='pirenderer', channel_first=True).shape == (5, 73, 27)
    with pytest.raises(ValueError, match='pirenderer'):
        windows.descriptors(records[:, :257], 'pirenderer')
    with pytest.raises(ValueError, match='choose one of'):
        windows.descriptors(records, 'everything')
    with pytest.raises(UserError, match='no frames'):
        windows.window_indices(np.array([0]), 0)


def test_default_light_is_grey_and_uniform():
    normals = base.unit(rng(4).standard_normal((1, 50, 3)))
    light = lighting.irradiance(normals, np.zeros((1, 27)))
    np.testing.assert_allclose(light, lighting.INITIAL_LIGHT[0] * lighting.SH_A[0] * lighting.SH_C[0], rtol=1e-6)


def test_normals_of_a_flat_patch():
    points = np.float32([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    triangles = np.array([[0, 1, 2], [0, 2, 3]])
    np.testing.assert_allclose(base.area_normals(points, triangles), np.tile([0, 0, 1.0], (4, 1)), atol=1e-6)
    rings = np.array([[0, 1], [0, 2], [0, 1], [1, 2]])
    np.testing.assert_allclose(base.ring_normals(points, triangles, rings), np.tile([0, 0, 1.0], (4, 1)), atol=1e-6)
    gradient = jax.grad(lambda p: base.area_normals(p, triangles).sum())(jnp.zeros((4, 3)))
    assert np.isfinite(gradient).all()


def test_bfm_reads_npz_and_mat(tmp_path):
    data = tiny_bfm()
    np.savez(tmp_path / 'model.npz', **data)
    model = BFM.load(tmp_path / 'model.npz')
    assert isinstance(model, base.MorphableModel)
    np.testing.assert_allclose(np.mean(model.mean_shape, 0), 0, atol=1e-6)
    kept = BFM.from_arrays(data, recenter=False)
    np.testing.assert_array_equal(kept.mean_shape, data['meanshape'].reshape(-1, 3))
    expected = data['frontmask2_idx'].astype(int)[data['tri_mask2'].astype(int) - 1, 0] - 1
    np.testing.assert_array_equal(model.front_triangles, expected)
    released = BFM.from_arrays(data, front='release')
    np.testing.assert_array_equal(released.front_triangles, data['tri_mask2'].astype(int) - 1)
    scipy_io = pytest.importorskip('scipy.io')
    scipy_io.savemat(tmp_path / 'model.mat', data)
    again = BFM.load(tmp_path / 'model.mat')
    jax.tree.map(np.testing.assert_array_equal, model, again)


def test_bfm_refuses_wrong_files(tmp_path):
    with pytest.raises(UserError, match='no such file'):
        BFM.load(tmp_path / 'absent.mat')
    (tmp_path / 'noise.npz').write_bytes(b'not a zip file')
    with pytest.raises(UserError, match='not a readable'):
        BFM.load(tmp_path / 'noise.npz')
    data = tiny_bfm()
    with pytest.raises(UserError, match='idBase has shape'):
        BFM.from_arrays({**data, 'idBase': data['idBase'][:, :79]}, source='x.mat')
    del data['tri']
    with pytest.raises(UserError, match='missing tri'):
        BFM.from_arrays(data)


def test_transfer_of_files(tmp_path):
    io = pytest.importorskip('scipy.io')
    r = rng(5)
    n0, n1, n2, front = 30, 25, 12, tiny_bfm(12)
    big = {f'{k}PC': r.standard_normal((3 * n0, 199)).astype(np.float32) for k in ('shape', 'tex')}
    big |= {f'{k}EV': r.random((199, 1)) for k in ('shape', 'tex')}
    big |= {f'{k}MU': r.standard_normal((3 * n0, 1)) for k in ('shape', 'tex')}
    trim, idx = r.permutation(n0)[:n1] + 1, r.permutation(n1)[:n2] + 1
    io.savemat(tmp_path / '01_MorphableModel.mat', big)
    io.savemat(tmp_path / 'BFM_exp_idx.mat', {'trimIndex': trim[:, None]})
    io.savemat(tmp_path / 'BFM_front_idx.mat', {'idx': idx[:, None].astype(np.float32)})
    io.savemat(tmp_path / 'facemodel_info.mat', front)
    components = r.standard_normal((79, 3 * n1)).astype('<f4')
    content = np.int32(79).tobytes() + np.zeros(3 * n1, '<f4').tobytes() + components.tobytes()
    (tmp_path / 'Exp_Pca.bin').write_bytes(content)
    np.savetxt(tmp_path / 'std_exp.txt', r.random(79))
    model = BFM.load(transfer_files(tmp_path, tmp_path / 'front'), recenter=False)
    rows = big['shapeMU'].reshape(-1, 3)[trim[idx - 1] - 1] / 1e5
    np.testing.assert_allclose(model.mean_shape, rows, rtol=1e-5)
    assert not list(tmp_path.glob('*.partial*'))
    with pytest.raises(UserError, match='damaged'):
        parse_expression_pca(content[:-4])


def tiny_ict(tmp_path, vertices=30):
    r = rng(6)
    data = {
        'vertices': r.uniform(-5, 5, (vertices, 3)).astype(np.float32),
        'faces': r.integers(0, vertices, (40, 3)).astype(np.int32),
        'identity_deltas': r.standard_normal((100, vertices, 3)).astype(np.float16),
        'expression_deltas': r.standard_normal((53, vertices, 3)).astype(np.float16),
        'expression_names': np.array([f'e{i}' for i in range(53)]),
        'extra_deltas': r.standard_normal((4, vertices, 3)).astype(np.float16),
        'extra_names': np.array(list('abcd')),
        'landmarks68': r.integers(0, vertices, 68).astype(np.int32),
        'region_names': np.array(['face'] + [f'r{i}' for i in range(16)]),
        'region_vertex_range': np.array([[0, 20]] + [[20, 30]] * 16, np.int32),
        'region_face_range': np.array([[0, 10]] + [[10 + i, 11 + i] for i in range(16)], np.int32),
    }
    np.savez(tmp_path / 'ict.npz', **data)
    return data, tmp_path / 'ict.npz'


def test_ict_frames_and_regions(tmp_path):
    data, path = tiny_ict(tmp_path)
    native, head = ICT.load(path, frame='native'), ICT.load(path)
    identity, expression = jnp.ones(100) * 0.1, jnp.linspace(0, 1, 53)
    expected = HEAD_SCALE * np.asarray(native.vertices(identity, expression)) + np.float32(HEAD_OFFSET)
    np.testing.assert_allclose(head.vertices(identity, expression), expected, atol=1e-4)
    np.testing.assert_allclose(
        head.landmarks(identity, expression), head.vertices(identity, expression)[data['landmarks68']], atol=1e-4
    )
    assert isinstance(head, base.MorphableModel)
    assert head.triangles.shape == (18, 3)  # regions 0 to 8 only
    assert ICT.load(path, opaque_only=False).triangles.shape == (40, 3)
    code = np.asarray(head.coordinate_code())
    assert code[:20].min() == 0 and code[:20].max() == 1
    assert head.albedo(jnp.zeros((2, 0))).shape == (2, 30, 3)
    with pytest.raises(ValueError, match='no albedo'):
        head.albedo(jnp.zeros(80))


def test_basis_is_checked(tmp_path):
    model = ICT.load(tiny_ict(tmp_path)[1])
    base.check_basis(model, 'ict-facekit-53', 'a.npz')
    with pytest.raises(UserError, match=r"a\.npz: coefficients belong to the basis 'bfm2009-deep3d'"):
        base.check_basis(model, 'bfm2009-deep3d', 'a.npz')


def test_regressor_size_and_zero_heads():
    module = ReconNet()
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == 24_034_625
    head = variables['params']['final_layers']['6']['weight']
    assert head.shape == (1, 1, 2048, 1)
    assert jax.eval_shape(module.apply, variables, images).shape == (1, 257)


def test_procedural_heads_share_interface_light_and_camera():
    from avatar_jax.procedural import ProceduralHead, render_head, sample_identity, split_identity
    from avatar_jax.procedural.samples import project, sh_light

    r = rng(8)
    head = ProceduralHead()
    assert isinstance(head, base.MorphableModel) and head.basis == 'procedural'
    base.check_basis(head, 'procedural', 'motion.npz')
    normals, gamma = base.unit(r.standard_normal((30, 3))), 0.2 * r.standard_normal(27)
    np.testing.assert_allclose(sh_light(normals, gamma), lighting.irradiance(normals, gamma), rtol=1e-4, atol=1e-5)

    identity, expression = sample_identity(3, 'val'), np.zeros(64, np.float32)
    angle, trans = np.float32([0.1, -0.3, 0.05]), np.float32([0.05, -0.02, 0.1])
    label = camera_labels.label_from_pose(angle, trans, 'raw')
    picture = render_head(identity, expression, label, resolution=64, supersample=1)
    shape = np.asarray(split_identity(identity).shape)
    posed = pose.transform(picture.vertices[np.asarray(head.landmark_ids)], pose.rotation_matrix(angle), trans)
    camera = pose.to_camera(posed)
    seen = 0.5 + camera_labels.FOCAL * np.stack([camera[:, 0], -camera[:, 1]], 1) / camera[:, 2:]
    np.testing.assert_allclose(picture.landmarks, 64 * seen, atol=0.01)
    np.testing.assert_allclose(
        picture.landmarks, 64 * project_label(label, pose.head_to_world(picture.vertices[head.landmark_ids])), atol=0.01
    )
    assert head.vertices(shape, expression).shape == picture.vertices.shape
    assert project(pose.head_to_world(picture.vertices), label, 64, 64).shape == (*picture.vertices.shape[:-1], 3)
