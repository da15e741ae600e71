"""HiDe-NeRF's rendered expression codes: what they depend on, mirror images, host and device, other head models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.driving.bases import FLAME_JAW
from avatar_jax.errors import UserError
from avatar_jax.faces.bfm import BFM
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.faces.flame import FLAME
from avatar_jax.faces.ict import ICT
from avatar_jax.methods.hidenerf import model as networks
from avatar_jax.methods.hidenerf import secc
from avatar_jax.methods.hidenerf.config import ModelConfig
from avatar_jax.procedural import ProceduralHead
from avatar_jax.render.rasterizer import SeccConfig
from tests.comparison import close
from tests.convert.test_convert_faces import flame_arrays
from tests.test_faces_geometry import tiny_bfm, tiny_ict

CONFIG = SeccConfig(size=48, signed=True)


@pytest.fixture(scope='module')
def mesh():
    return secc.procedural_mesh()


@jax.jit
def _draw(mesh, shape, expression, mirrored):
    return secc.codes(mesh, shape, expression, CONFIG, mirrored=mirrored)


def draw(mesh, shape, expression, mirrored=False):
    return np.asarray(_draw(mesh, shape, expression, jnp.asarray(mirrored)))


driving_codes = jax.jit(networks.driving_codes, static_argnums=0)


def face(seed=0):
    rng = np.random.default_rng(seed)
    names = ProceduralHead.expression_names
    expression = np.zeros(64, np.float32)
    for name in ('jaw_open', 'smile_l', 'blink_r'):
        expression[names.index(name)] = rng.uniform(0.5, 1)
    return rng.normal(size=80).astype(np.float32), expression


def test_codes_do_not_depend_on_the_pose_unless_coupled(mesh):
    """Invariant 3: bit for bit, of the codes that a model draws."""
    given = [x[None] for x in face()]
    labels = [label_from_pose(np.float32([[0, yaw, 0]]), np.zeros((1, 3), np.float32), 'raw') for yaw in (0.0, 0.4)]
    free, coupled = (
        [np.asarray(driving_codes(config, mesh, *given, np.float32(x))[0]) for x in labels]
        for config in (ModelConfig.tiny(), ModelConfig.tiny(deformation__pose_coupled=True))
    )
    np.testing.assert_array_equal(*free)
    assert np.abs(coupled[0] - coupled[1]).max() > 0.2
    assert (np.abs(coupled[0] - free[0]).max(-1) > 2e-3).mean() < 0.01  # the frontal camera is the fixed one


def test_codes_know_shape_and_expression(mesh):
    """Invariant 4."""
    shape, expression = face()
    other, none = face(1)[0], np.zeros(64, np.float32)
    driving, canonical = draw(mesh, shape, expression), draw(mesh, shape, none)
    assert np.abs(driving - draw(mesh, other, expression)).max() > 0.05
    assert np.abs(canonical - draw(mesh, other, none)).max() > 0.05
    assert np.abs(driving - canonical).max() > 0.1
    # Another program: at edges of triangles its rounding may give a pixel to the other side.
    alone = jax.jit(secc.canonical, static_argnums=2)(mesh, shape, CONFIG)
    assert (np.abs(canonical - alone).max(-1) > 1e-5).mean() < 0.01


def test_background_and_colours(mesh):
    image = draw(mesh, *face())
    empty = (image == -1).all(-1)
    assert empty[0, 0] and empty[-1, 0] and 0.2 < (~empty).mean() < 0.9
    assert image[~empty].min() >= -1 and image.max() <= 1
    red = np.where(empty, np.nan, image[..., 0])
    assert np.nanmean(red[:, 32:]) > np.nanmean(red[:, :16])  # x grows to image right


def test_mirror_images(mesh):
    """A mirrored shape with a mirrored expression is the flipped picture, recoloured; a plain flip is not."""
    shape, expression = face()
    names = list(ProceduralHead.expression_names)
    swapped = expression.copy()
    for i, name in enumerate(names):
        if name.endswith(('_l', '_r')):
            swapped[names.index(name[:-1] + ('r' if name.endswith('l') else 'l'))] = expression[i]
    own, mirrored = draw(mesh, shape, expression), draw(mesh, shape, swapped, mirrored=True)
    turned = np.asarray(secc.flipped(own))
    assert np.abs(turned - mirrored).max() < 0.02  # the quads of the mesh are cut alike, not mirrored
    assert (np.abs(own[:, ::-1] - mirrored).max(-1) > 0.1).mean() > 0.2
    unit = np.asarray(secc.flipped((own + 1) / 2, signed=False))
    close(2 * unit - 1, turned, atol=1e-6, what='unsigned')
    np.testing.assert_allclose(secc.flipped(turned), own, atol=1e-6)
    asymmetric = np.abs(draw(mesh, shape, expression, mirrored=True) - own).max()
    assert asymmetric > 0.02  # the mirrored person's shape, with the same expression


def test_the_mirror_leaves_the_expression_alone(mesh):
    shape, expression = face()
    change = secc.points(mesh, shape, expression, np.True_) - secc.points(mesh, shape, 0 * expression, np.True_)
    same = secc.points(mesh, shape, expression) - secc.points(mesh, shape, 0 * expression)
    close(change, same, atol=1e-5, what='expression')
    unturned = secc.points(mesh, shape, expression, np.False_)
    close(unturned, secc.points(mesh, shape, expression), atol=1e-6, what='no mirror')


def test_host_and_device_draw_the_same(mesh):
    shape, expression = face()
    for mirrored in (False, True):
        ours = draw(mesh, shape, expression, mirrored=mirrored)
        theirs = secc.codes_on_host(mesh, shape, expression, CONFIG, mirrored)
        assert (np.abs(ours - theirs).max(-1) > 1e-3).mean() < 0.003
    batch = jax.jit(lambda m, s, e: secc.codes(m, s, e, CONFIG))(mesh, shape, np.stack([expression, 0 * expression]))
    assert batch.shape == (2, 48, 48, 3) and np.abs(batch[0] - draw(mesh, shape, expression)).max() < 1e-5


def test_a_pipeline_draws_each_code_once(mesh, monkeypatch):
    drawn = []

    def counted(*given):
        drawn.append(given[-1])
        return host(*given)

    host = secc.codes_on_host
    monkeypatch.setattr(secc, 'codes_on_host', counted)
    store, (shape, expression), none = secc.CodeStore(mesh, CONFIG, keep=3), face(), np.zeros(80, np.float32)
    close(store(shape, expression), host(mesh, shape, expression, CONFIG), atol=1e-3, what='in half precision')
    assert store(shape, expression) is store(shape.copy(), expression) and len(drawn) == 1
    assert store(shape, expression, True) is not store(shape, expression)
    assert store(none, expression, True) is store(none, expression)  # the mean head is its own mirror image
    assert drawn == [False, True, False]
    store(none, none)
    store(shape, expression)  # the oldest had to go
    assert len(drawn) == 5


def flame():
    arrays = flame_arrays()
    rng = np.random.default_rng(2)
    arrays['v_template'] = rng.uniform(-0.1, 0.1, arrays['v_template'].shape)
    return FLAME.from_arrays(arrays)


@pytest.mark.slow
def test_every_head_model_can_be_drawn(tmp_path):
    """BFM, FLAME with its jaw, ICT: one colour per vertex, whatever the model."""
    models = [BFM.from_arrays(tiny_bfm()), ICT.load(tiny_ict(tmp_path)[1]), flame()]
    for model in models:
        mesh = secc.build_mesh(model)
        assert mesh.basis == model.basis and mesh.code.shape == (mesh.partner.shape[0], 3)
        assert float(mesh.code.min()) == 0 and float(mesh.code.max()) == 1
        shape, expression = np.zeros(100, np.float32), np.zeros(64, np.float32)
        expression[FLAME_JAW.start] = 0.3
        points = secc.points(mesh, shape, expression)
        rest = secc.points(mesh, shape, 0 * expression)
        assert points.shape == (mesh.partner.shape[0], 3) and float(jnp.abs(points - rest).max()) > 0, model.name
        again = secc.points(mesh, shape, expression, jnp.asarray(True))
        assert again.shape == points.shape and bool(jnp.isfinite(again).all())


def test_bad_meshes_and_bases_are_one_line(mesh, tmp_path):
    with pytest.raises(UserError, match="clip.npz: its coefficients belong to the basis 'flame-2020'.*'procedural'"):
        secc.check_basis(mesh, 'flame-2020', 'clip.npz')
    secc.check_basis(mesh, 'procedural', 'clip.npz')
    with pytest.raises(UserError, match='NCC colours: 7 vertices, but the procedural mesh has 5549'):
        secc.build_mesh(ProceduralHead(), np.zeros((7, 3)))
    model = ICT.load(tiny_ict(tmp_path)[1])
    with pytest.raises(UserError, match='belong to different models'):
        secc.build_mesh(model.replace(triangles=model.triangles + 5))
    own = np.random.default_rng(0).uniform(size=(30, 3))
    mesh = secc.build_mesh(model, own)
    np.testing.assert_allclose(mesh.code, own[np.unique(np.asarray(model.triangles))], rtol=1e-6)


def test_lids_show(mesh):
    """A blink changes the code as clearly as an open mouth does, where the eyes are and nowhere else."""
    still, blink = np.zeros((2, 64), np.float32)
    for name in ('blink_l', 'blink_r'):
        blink[ProceduralHead.expression_names.index(name)] = 1
    before, after = (draw(mesh, np.zeros(80, np.float32), e) for e in (still, blink))
    change = np.abs(after - before).max(-1)
    rows, columns = np.nonzero(change > 0.5)
    assert len(rows) >= 8 and change.max() > 1
    assert np.ptp(rows) <= 3 and np.ptp(columns) < 24 and columns.min() + columns.max() == pytest.approx(47, abs=2)
