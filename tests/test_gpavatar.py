"""GPAvatar: what must hold whatever the weights are. Tiny networks; the numbers are compared in tests/parity."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.configure import from_plain
from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose, yaw_label
from avatar_jax.faces.flame import FLAME
from avatar_jax.methods import model as models
from avatar_jax.methods.gpavatar import cameras, fusion, head, inputs, mesh, model
from avatar_jax.methods.gpavatar import field as fields
from avatar_jax.methods.gpavatar.config import ABLATIONS, PRESET_DIFFERENCES, GPAvatarConfig, ModelConfig
from avatar_jax.methods.gpavatar.export import export_frame
from avatar_jax.methods.gpavatar.train import RunConfig
from avatar_jax.ops.knn import nearest
from avatar_jax.types import Camera, Portrait

CONFIG = ModelConfig.tiny(field__normalise='samples', noise='stored')
head_points = jax.jit(mesh.head_points, static_argnums=0)
FRONT = np.asarray(label_from_pose(np.zeros(3, np.float32), np.zeros(3, np.float32), 'raw'))


@pytest.fixture(scope='module')
def variables():
    return {**model.init(CONFIG, jax.random.key(0)), 'mesh': mesh.load_mesh(CONFIG)}


def portrait(seed=0, size=16):
    image = np.random.default_rng(seed).uniform(-1, 1, (size, size, 3)).astype(np.float32)
    return Portrait(image=image, camera=Camera.from_label(FRONT), source=f'picture {seed}')


def motion(frames, seed=0):
    windows = np.zeros((frames, 27, 70), np.float32)
    windows[..., :64] = np.random.default_rng(seed).uniform(0, 0.5, (frames, 1, 64))
    labels = np.stack([np.asarray(yaw_label(FRONT, a), np.float32) for a in np.linspace(-0.3, 0.3, frames)])
    return jnp.asarray(windows), jnp.asarray(labels)


# ------------------------------------------------------------------------------------------- exact rearrangements


@pytest.mark.slow
@pytest.mark.parametrize('normalise', ['samples', 'neighbours'])
def test_rays_in_portions_give_the_same_picture(variables, normalise):
    """Also where weights are normalised over all samples of a call: their sums are taken first, over everything."""
    base = CONFIG.settings.field
    field = dataclasses.replace(base, normalise=normalise)
    rng = np.random.default_rng(0)
    places = jnp.asarray(rng.uniform(-1.1, 1.1, (1, 10, 3, 3)), jnp.float32)
    directions = jnp.asarray(rng.normal(size=(1, 10, 3)), jnp.float32)
    points = head_points(CONFIG, variables['mesh'], jnp.zeros(80), jnp.zeros((1, 64)))
    scene = head.Scene(jnp.asarray(rng.normal(size=(1, *CONFIG.plane_shape)), jnp.float32), points)

    @jax.jit
    def run(places, directions):
        args = variables['params']['nerf_mlp'], CONFIG.settings.head, field, scene
        return [head.query(*args, places, directions, chunk) for chunk in (None, 4)]

    whole, portions = run(places, directions)
    for a, b in zip(whole, portions, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # A part of the rays alone is another call: with the released normalisation it looks different.
    alone = run(places[:, :5], directions[:, :5])[0]
    same = np.allclose(alone[1], whole[1][:, :5], rtol=1e-5, atol=1e-6)
    assert same == (normalise == 'neighbours')


def plain_field(params, config, places, points, index, sums):
    """The field as it is defined: both layers for every neighbour, then the weighted sum."""
    offset = places[:, None] - points[index]
    square = (offset**2).sum(-1)
    weight = 1 / square / sums
    code = fields.harmonic_encoding(fields.unit_vector(offset), config.octaves)
    x = jnp.concatenate([params['points_feature']['weight'][index], code], -1)
    x = jax.nn.relu(fields.linear(params['point_layers_0'], x))
    return (fields.linear(params['point_layers_2'], x) * weight[..., None]).sum(1)


def test_the_field_costs_a_third_and_is_the_same():
    config = fields.FieldConfig(points=300, knn='brute')
    params = fields.init_field(config, jax.random.key(0))
    rng = np.random.default_rng(1)
    places, points = (jnp.asarray(rng.uniform(-1, 1, (n, 3)), jnp.float32) for n in (512, 300))
    known = jax.jit(lambda a, b: fields.neighbours_of(a, b, config))(places[None], points[None])

    def quick(params, places, points, known):
        prepared = fields.prepare_points(params, config)
        return fields.point_features(params, prepared, config, places[None], points[None], known)[0]

    def plain(params, places, points, known):
        return plain_field(params, config, places, points, known.index[0], known.sums[0])

    costs = []
    for function in (quick, plain):
        compiled = jax.jit(function).lower(params, places, points, known).compile()
        costs.append((compiled.cost_analysis()['flops'], compiled(params, places, points, known)))
    np.testing.assert_allclose(costs[0][1], costs[1][1], rtol=2e-4, atol=2e-6)
    # Multiplications of matrices fall to a third; the count also has the encoding, which stays.
    assert costs[0][0] < 0.45 * costs[1][0], [c for c, _ in costs]


@pytest.mark.slow
def test_a_field_of_points_and_coefficients_is_their_sum(variables):
    rng = np.random.default_rng(0)
    both = dataclasses.replace(CONFIG.settings.field, kind='both', normalise='neighbours')
    params = head.init_head(CONFIG.settings.head, both, jax.random.key(1))
    numbers = jnp.asarray(rng.normal(size=(1, 64)), jnp.float32)
    points = head_points(CONFIG, variables['mesh'], jnp.zeros(80), 0 * numbers)
    scene = head.Scene(jnp.asarray(rng.normal(size=(1, *CONFIG.plane_shape)), jnp.float32), points, numbers)
    places, directions = (jnp.asarray(rng.uniform(-0.9, 0.9, s), jnp.float32) for s in ((1, 6, 3, 3), (1, 6, 3)))

    @partial(jax.jit, static_argnums=0)
    def run(kind, params):
        field = dataclasses.replace(both, kind=kind)
        return head.query(params, CONFIG.settings.head, field, scene, places, directions)

    def answers(kind, without=()):
        own = {
            k: jax.tree.map(lambda x: 0 * np.asarray(x), v) if k in without else v
            for k, v in params['points_querier'].items()
        }
        return run(kind, {**params, 'points_querier': own})

    last = 'point_layers_2' if both.layers == 2 else 'point_layers_0'
    found = answers('both')
    for kind, other in (('points', 'expression_layer'), ('expression', last)):
        chex.assert_trees_all_close(answers(kind), answers('both', [other]), rtol=1e-6)
        assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(found, answers(kind), strict=True))


def test_neighbours_need_no_large_table():
    places, points = jnp.zeros((20_000, 3)), jnp.ones((500, 3))
    compiled = jax.jit(lambda q, p: nearest(q, p, 8, 'brute', tile=256)).lower(places, points).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20_000 * 500 * 4 / 8


def test_sums_scale_to_another_number_of_samples():
    rng = np.random.default_rng(2)
    places, points = (jnp.asarray(rng.uniform(-1, 1, (1, n, 3)), jnp.float32) for n in (64, 60))
    config = dataclasses.replace(CONFIG.settings.field, reference_samples=640)
    plain = dataclasses.replace(config, reference_samples=None)
    find = jax.jit(fields.neighbours_of, static_argnums=2)
    many = find(np.tile(places, (1, 10, 1)), points, plain)
    np.testing.assert_allclose(find(places, points, config).sums, many.sums, rtol=1e-5)


def test_places_on_points_are_finite():
    config = dataclasses.replace(CONFIG.settings.field, points=20, neighbours=3)
    params = fields.init_field(config, jax.random.key(0))
    points = jnp.asarray(np.random.default_rng(0).normal(size=(1, 20, 3)), jnp.float32)

    def run(points):
        known = fields.neighbours_of(points, points, config)
        return fields.point_features(params, fields.prepare_points(params, config), config, points, points, known).sum()

    value, grad = jax.jit(jax.value_and_grad(run))(points)
    assert np.isfinite(value) and np.isfinite(np.asarray(grad)).all()


# ------------------------------------------------------------------------------------------------ cameras and inputs


def test_cameras_of_labels_see_points_where_the_labels_do():
    world = cameras.WorldConfig()
    label = np.asarray(yaw_label(FRONT, 0.4), np.float32)
    transform, focal = cameras.camera_of_label(label, world)
    point = np.array([[0.1, -0.2, 0.1]], np.float32)
    pixel = cameras.to_screen((point - np.asarray(world.center, np.float32)) * world.scale, transform, focal, 100)
    pose, intrinsics = label[:16].reshape(4, 4), label[16:].reshape(3, 3)
    camera = (point - pose[:3, 3]) @ pose[:3, :3]
    expected = (camera / camera[:, 2:]) @ intrinsics.T * 100
    np.testing.assert_allclose(pixel, expected[:, :2], rtol=1e-4)
    np.testing.assert_allclose(cameras.label_of_camera(transform, float(focal), world), label, atol=1e-5)


def test_canonical_frame_of_a_frontal_camera_is_the_picture():
    transform = np.concatenate([np.diag([-1.0, 1, -1]), [[0], [0], [12]]], 1).astype(np.float32)
    coefficients = inputs.warp_coefficients(transform[None], 12.0, 16)
    # The square fills the picture: output pixels 0..15 are spread over its edges 0..16, and read there.
    ramp = jnp.broadcast_to(jnp.arange(16) + 0.5, (1, 16, 16))[..., None]
    warped = jax.jit(inputs.warp)(ramp, jnp.asarray(coefficients))
    np.testing.assert_allclose(warped[0, 3:12, 3:12, 0], np.tile((np.arange(3, 12) + 0.5) * 16 / 15, (9, 1)), rtol=1e-4)


# ------------------------------------------------------------------------------------------------------ whole avatars


@pytest.mark.slow
def test_avatar_of_portraits(variables, tmp_path):
    one, two = portrait(0), portrait(1)
    avatar = model.build(variables, CONFIG, [one, two])
    assert avatar.method == 'gpavatar' and avatar.identity['planes'].shape == CONFIG.plane_shape
    # One by one is the same as all together.
    unit = (np.stack([p.image for p in (one, two)]) + 1) / 2
    noise = model.noise_of(variables, CONFIG, 'style_tplane', 'stored', 2, None)

    @jax.jit
    def together(params, scale, unit, views, noise):
        planes = model.encode(params, CONFIG, model.canonical(CONFIG, unit, views), noise)
        return planes, model.fuse(params, scale, CONFIG, planes[None])[0]

    scale, views = variables['constants']['attn_module']['scale'], model.views_of(CONFIG, np.stack([FRONT] * 2))
    planes, fused = together(variables['params'], scale, unit, views, noise)
    np.testing.assert_allclose(avatar.identity['planes'], fused, rtol=1e-3, atol=1e-4)
    single = model.build(variables, CONFIG, one)
    np.testing.assert_allclose(single.identity['planes'], planes[0], rtol=1e-3, atol=1e-4)

    # Weight file and avatar file, and the common way to use them.
    path = tmp_path / 'weights.safetensors'
    digest = model.save_model(path, variables, CONFIG, {})
    loaded = models.choose_model('gpavatar', path)
    assert loaded.config == CONFIG and loaded.sha256 == digest
    models.save_avatar(tmp_path / 'avatar', loaded.build([one, two]).avatar, {})
    again = models.load_avatar(tmp_path / 'avatar')
    assert again.config == CONFIG and again.weights == digest
    windows, labels = motion(3)
    frames = loaded.frames(again, windows, labels)
    assert frames.rgb.shape == (3, 16, 16, 3) and frames.raw.shape == (3, 8, 8, 3) and np.abs(frames.rgb).max() <= 1
    exported, needed = export_frame(loaded.variables, CONFIG, again, 1)
    picture = exported.call(needed, dict(again.identity), windows[:1, 13, :64], labels[:1])
    np.testing.assert_allclose(picture[0], frames.rgb[0], atol=2e-3)
    with pytest.raises(UserError, match=r"holds weights of 'gpavatar', but --method is otavatar"):
        models.choose_model('otavatar', path)


def test_a_hundred_portraits_need_the_memory_of_one(variables):
    many = model.build(variables, CONFIG, [portrait(k % 3) for k in range(100)])
    assert np.isfinite(np.asarray(many.identity['planes'])).all() and many.source.endswith(', ...')


def test_bad_portraits(variables):
    with pytest.raises(UserError, match='none given'):
        model.build(variables, CONFIG, [])
    own = dataclasses.replace(CONFIG, shape='own')
    with pytest.raises(UserError, match='has 7 shape coefficients, the procedural head has 80'):
        model.build(variables, own, portrait().replace(shape=np.zeros(7)))


@pytest.mark.slow
def test_fusion_kinds_add_up():
    rng = np.random.default_rng(0)
    planes = jnp.asarray(rng.normal(size=(1, 3, 3, 4, 4, 8)), jnp.float32)
    query = jnp.asarray(rng.normal(size=(3, 4, 4, 8)), jnp.float32)

    @partial(jax.jit, static_argnums=0)
    def both_ways(kind, params):
        weights = fusion.attention_weights(params, query, planes, jnp.ones(1), kind)
        state = fusion.FusionState.start(query.shape)
        for view in planes[0]:
            state = state.add(params, query, view, jnp.ones(1), kind)
        return weights, state.result(kind), fusion.fuse(params, query, planes, jnp.ones(1), kind)[0]

    for kind in fusion.KINDS:
        weights, one_by_one, together = both_ways(kind, fusion.init_fusion(kind, 8, jax.random.key(1)))
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-3)
        np.testing.assert_allclose(one_by_one, together, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('scale', [0.1, 1.0, 30.0])
def test_linear_attention_gives_shares(scale):
    """Whatever the planes are, portraits get shares of one, and gradients are finite."""
    rng = np.random.default_rng(1)
    planes = jnp.asarray(scale * rng.normal(size=(1, 4, 3, 8, 8, 16)), jnp.float32)
    query = jnp.asarray(rng.normal(size=(3, 8, 8, 16)), jnp.float32)
    params = fusion.init_fusion('linear', 16, jax.random.key(0))

    @jax.jit
    def run(planes):
        found, back = jax.vjp(lambda x: fusion.fuse(params, query, x, jnp.ones(1), 'linear'), planes)
        return fusion.attention_weights(params, query, planes, jnp.ones(1), 'linear'), found, back(jnp.ones_like(found))

    weights, found, gradient = run(planes)
    assert float(weights.min()) > 0 and float(weights.max()) < 1
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    assert float(jnp.abs(found).max()) <= float(jnp.abs(planes).max()) and np.isfinite(gradient).all()


@pytest.mark.slow
def test_first_values_let_portraits_differ_in_their_shares():
    """Logits of fresh networks have about unit spread with 'he', and next to none as PyTorch draws them."""
    rng = np.random.default_rng(2)
    planes = jnp.asarray(rng.normal(size=(2, 3, 8, 8, 32)), jnp.float32)
    query = jnp.asarray(0.2 * rng.normal(size=(3, 8, 8, 32)), jnp.float32)
    plain = fusion.init_fusion('attention', 32, jax.random.key(3))

    @jax.jit
    def spread_of(params):
        return fusion.scores(params, query, planes, jnp.full(1, 32**-0.5), 'attention').std()

    def spread(params):
        return float(spread_of(params))

    assert spread(plain) < 0.1 and 0.4 < spread(fusion.keep_variance(plain, 'attention')) < 2.5
    assert fusion.keep_variance({}, 'mean') == {}
    heads = ModelConfig.tiny(train__first='he')
    drawn, usual = (model.init(c, jax.random.key(0))['params']['attn_module'] for c in (heads, ModelConfig.tiny()))
    factor = np.asarray(drawn['to_q__3']['weight'] / usual['to_q__3']['weight'])
    np.testing.assert_allclose(factor, (3 / fusion.GELU_POWER) ** 0.5, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------- head models


def test_points_of_the_procedural_head_lie_in_the_cube():
    points = np.asarray(head_points(CONFIG, mesh.load_mesh(CONFIG), jnp.zeros(80), jnp.zeros((2, 64))))
    assert points.shape == (2, 60, 3) and np.mean(np.abs(points).max(-1) < 1) > 0.7
    assert (mesh.point_ids(10, 10) == np.arange(10)).all() and len(mesh.point_ids(5023, 2000)) == 2000


def small_flame(vertices=70):
    rng = np.random.default_rng(0)
    return FLAME.from_arrays(
        {
            'v_template': rng.normal(size=(vertices, 3)),
            'shapedirs': rng.normal(size=(vertices, 3, 400)) * 0.01,
            'posedirs': np.zeros((vertices, 3, 36)),
            'J_regressor': np.full((5, vertices), 1 / vertices),
            'weights': np.full((vertices, 5), 0.2),
            'kintree_table': np.array([[-1, 0, 1, 1, 1], range(5)]),
            'f': np.arange(vertices // 3 * 3).reshape(-1, 3),
        }
    )


@pytest.mark.slow
def test_flame_moves_the_points(monkeypatch, tmp_path):
    config = dataclasses.replace(CONFIG, basis='flame-2020')
    found = mesh.load_mesh(config, small_flame())
    expression = np.zeros((2, 64), np.float32)
    expression[1, 50] = 0.3  # the jaw
    points = head_points(config, found, jnp.zeros(100), jnp.asarray(expression))
    assert points.shape == (2, 60, 3) and np.abs(points[0] - points[1]).max() > 0.01
    with pytest.raises(UserError, match='has 40 vertices, the weights expect 60'):
        mesh.load_mesh(config, small_flame(40))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('AVATAR_ASSETS', raising=False)
    with pytest.raises(
        UserError, match=r'generic_model.pkl is missing; obtain it from the FLAME project.*FLAME licence'
    ):
        mesh.load_mesh(config)


# ------------------------------------------------------------------------------------------------------ configuration


def value(config, path):
    for name in path.split('.'):
        config = getattr(config, name)
    return config


def test_every_named_difference_of_the_presets_is_one():
    paper, release = GPAvatarConfig.paper(), GPAvatarConfig.release()
    for topic, paths in PRESET_DIFFERENCES.items():
        for path in paths:
            assert value(paper, path) != value(release, path), f'{topic}: {path}'


def test_configurations_survive_their_files():
    for config in (ModelConfig.full('paper'), ModelConfig.heads(), CONFIG):
        assert ModelConfig.from_dict(config.to_dict()) == config
    for name in ABLATIONS:
        assert (CONFIG.settings.ablation(name) != CONFIG.settings) == (name != 'full')
    with pytest.raises(UserError, match=r"field.direction: 'both'; use one of unit, offset"):
        CONFIG.with_method(field__direction='both')
    with pytest.raises(UserError, match='did you mean'):
        CONFIG.with_method(field__neighbour=4)


def test_variants_of_the_configuration_file():
    from avatar_jax.methods.gpavatar.training import networks_of
    from launch.config_args import load_config

    def model_of(variant):
        return from_plain(RunConfig, load_config(f'gpavatar_heads{variant}', []).to_dict()).model

    heads, eyes = model_of(''), model_of(':eyes')
    assert heads == ModelConfig.heads() and eyes != heads
    assert networks_of(eyes) == networks_of(heads.with_method(field__kind='both'))  # it can go on with their weights
    assert eyes.settings.train.importance.eye > heads.settings.train.importance.eye
    small = model_of(':small')
    for name in ABLATIONS:
        if name != 'full':
            assert model_of(f':small,{name}') == dataclasses.replace(small, settings=small.settings.ablation(name))
    assert model_of(':full').plane_size == 256 and model_of(':tiny,paper').settings.preset == 'paper'
    with pytest.raises(UserError, match='eyess'):
        model_of(':eyess')
