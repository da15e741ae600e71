"""Steps of rays in GPAvatar's training, the pictures they are drawn from, and the first values of its networks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.faces.importance import Importance, importance, part_boxes
from avatar_jax.methods.gpavatar import cameras, head
from avatar_jax.methods.gpavatar import train as training
from avatar_jax.methods.gpavatar.config import ModelConfig
from avatar_jax.methods.gpavatar.model import encode, init, render_rays, render_views, superresolve
from avatar_jax.methods.gpavatar.train_config import TrainConfig
from avatar_jax.models import styleunet
from avatar_jax.ops.resize import resize
from avatar_jax.ops.windows import RADIUS
from avatar_jax.render.sampling import draw_pixels
from avatar_jax.train.logging import read_jsonl
from avatar_jax.train.optimizers import OptimizerConfig
from avatar_jax.train.run import ClipsConfig, PeopleOutput
from data_pipelines.sets import SetConfig, Sets
from tests.runs import train_and_resume

SETTINGS = {
    'loss__box': 0.0,
    'loss__opacity': 0.3,
    'loss__depth': 0.5,
    'fine_samples': 6,
    'loss__squared': 4.0,
    'training_noise': 'zero',
    'noise': 'zero',
    'train__drivers': 2,
    'train__sources': 2,
    'train__rays': 40,
    'train__ray_iterations': 4,
    'train__whole_every': 3,
    'train__first': 'he',
    # Steps that are wide enough to see within some dozens that the loss falls.
    'train__optimizer': OptimizerConfig('adam', 3e-3, beta1=0.9),
}


def run_config(folder, iterations=5):
    return training.RunConfig(
        model=dataclasses.replace(ModelConfig.tiny(**SETTINGS, train__iterations=iterations), sr_skip=True),
        data=ClipsConfig('heads', str(folder), people=3, frames=4, resolution=16, num_threads=0),
        output=PeopleOutput(log_every=1, sample_every=5, sample_people=2, checkpoint_every=1, tensorboard=False),
        parallel='single',
    )


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return tmp_path_factory.mktemp('heads') / 'drawn'


@pytest.fixture(scope='module')
def trained(pictures, tmp_path_factory):
    return train_and_resume(run_config(pictures), tmp_path_factory.mktemp('gpavatar_rays'), 2)


@pytest.mark.slow
def test_rays_and_whole_pictures_alternate_and_resume(trained):
    whole, resumed, folder, *_ = trained
    log = read_jsonl(folder / 'metrics.jsonl')
    steps = {r['step']: r for r in log if 'loss' in r}
    assert [('perceptual' in steps[k]) for k in range(1, 6)] == [False, False, True, False, True]  # step 3 and after 4
    assert all(np.isfinite(r['opacity']) and np.isfinite(r['psnr']) for r in steps.values())
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert list((folder / 'samples').iterdir())


def test_pictures_are_made_once_and_have_their_own_windows(pictures, trained, capsys):
    from data_pipelines.fast_heads import FastHeadsConfig, sample
    from data_pipelines.sources import HeadShards
    from data_pipelines.streams import clips

    source = HeadShards(pictures, 3)
    assert len(source) == 12 and list(source.table.people) == [0, 1, 2]
    made = sample(FastHeadsConfig(0, 'train', 16, frames_per_identity=4), 6)
    np.testing.assert_array_equal(source[6]['image'], made['rgb'])
    np.testing.assert_array_equal(source.table.window(1, 0, 2), made['window'])
    np.testing.assert_array_equal(source.table.motion[6], made['window'][RADIUS])
    before = [p.stat().st_mtime_ns for p in sorted(pictures.iterdir())]
    model = run_config(pictures).model
    clips(run_config(pictures).data, 16, model.conventions)
    assert [p.stat().st_mtime_ns for p in sorted(pictures.iterdir())] == before
    with pytest.raises(UserError, match='has 3 people of 4 frames, 5 are asked for'):
        HeadShards(pictures, 5)
    with pytest.raises(UserError, match='another configuration'):
        clips(dataclasses.replace(run_config(pictures).data, seed=1), 16, model.conventions)


@pytest.mark.parametrize('wrong', [{'folder': ''}, {'clips_per_person': 2}])
def test_options_of_drawn_heads(wrong):
    with pytest.raises(UserError, match=f"data.{next(iter(wrong))}: .*source 'heads'"):
        ClipsConfig(**{'source': 'heads', 'folder': 'x', **wrong})


@pytest.mark.parametrize('wrong', [{'rays': 0}, {'rays': -1}, {'whole_every': -1}, {'drivers': 0}, {'first': 'best'}])
def test_options_of_training(wrong):
    with pytest.raises(UserError, match='train'):
        TrainConfig(**{'rays': 5, 'ray_iterations': 2, **wrong})


def test_what_depths_need(pictures, trained):
    from data_pipelines.sources import HeadShards

    with pytest.raises(UserError, match='places 4 of them around the surface'):
        ModelConfig.tiny(**{**SETTINGS, 'fine_samples': 5})
    config, item = run_config(pictures).model, Sets(HeadShards(pictures), SetConfig(1, 4, 0))(0)
    batch = {k: v[None] for k, v in item.items() if k != 'depths'}
    with pytest.raises(UserError, match='these data have no depths'):
        training.with_host_arrays(config, batch, rays=True)
    training.with_host_arrays(config, batch)  # whole pictures need none


def test_samples_near_the_surface():
    origins, directions = jnp.array([[[0.0, 0, 3], [0, 0, 3]]]), jnp.array([[[0.0, 0, -1], [0, 0, -1]]])
    depths = training.near_surface(
        jax.random.split(jax.random.key(0), 1), (origins, directions), jnp.array([[2.5, 0.0]])
    )
    assert depths.shape == (1, 2, 4)
    assert float(jnp.abs(depths[0, 0] - 2.5).max()) <= 3 * training.NEAR_STD
    assert float(depths[0, 1].min()) >= 2 and float(depths[0, 1].max()) <= 4  # anywhere in the cube
    config = ModelConfig.tiny(**SETTINGS).settings.loss
    term = training.depth_term(
        config, jnp.array([[[0.5, 0.5]]]), jnp.array([[[2.0, 3.0]]]), jnp.array([[2.5]]), jnp.ones((1, 1))
    )
    np.testing.assert_allclose(term['depth'], 0.5 * 0.5)


def scene_of(config):
    variables = init(config, jax.random.key(0))
    planes = jax.random.normal(jax.random.key(1), (1, *config.plane_shape))
    points = jax.random.uniform(jax.random.key(2), (1, config.settings.field.points, 3), minval=-0.5, maxval=0.5)
    label = np.zeros((1, 25), np.float32)
    label[0, :16] = np.diag([1.0, -1, -1, 1]).reshape(-1)
    label[0, 11], label[0, 16:] = 2.7, np.array([[4.26, 0, 0.5], [0, 4.26, 0.5], [0, 0, 1]]).reshape(-1)
    return variables, head.Scene(planes, points), cameras.camera_of_label(jnp.asarray(label), config.world)


@pytest.mark.slow
def test_rays_through_pixel_centres_give_the_rendered_picture():
    config = ModelConfig.tiny(**SETTINGS)
    variables, scene, (transforms, focal) = scene_of(config)
    size = config.raw_size
    y, x = (np.arange(size * size).reshape(1, -1) // size, np.arange(size * size).reshape(1, -1) % size)
    places = jnp.asarray((np.stack([x, y], -1) + 0.5) / size, jnp.float32)

    @jax.jit
    def rays_of(transforms, focal, places):
        whole = cameras.rays(transforms, focal, size, size)
        return whole, cameras.rays_through(transforms, focal, places, size)

    @jax.jit
    def rendered(params, scene, transforms, focal, rays):
        whole = render_views(params, config, scene, transforms, focal, sr=False)
        return whole, render_rays(params, config, scene, *rays)

    # Nearly the same rays may have other neighbours at samples that two points are equally far from.
    rays, through = rays_of(transforms, focal, places)
    for a, b in zip(through, rays, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    whole, found = rendered(variables['params'], scene, transforms, focal, rays)
    np.testing.assert_allclose(found.fine.reshape(whole.fine.shape), whole.fine, atol=1e-6)


def test_drawn_pixels_follow_their_importance():
    weight = jnp.asarray(np.array([[0, 1, 0, 3], [0, 0, 4, 0]], np.float32))
    draw = jax.jit(lambda k: jnp.divmod(draw_pixels(k, weight, 8), 4))
    counts = np.zeros((2, 4))
    for k in range(40):
        rows, columns = draw(jax.random.key(k))
        np.add.at(counts, (rows, columns), 1)
    np.testing.assert_allclose(counts / 40, np.asarray(weight))  # evenly spread draws hit whole shares exactly


def test_importance_of_parts():
    marks = np.tile(np.array([[[8.0, 8.0]]], np.float32), (1, 68, 1))
    marks[0, 48:68] += np.stack(np.meshgrid([-2, 2], [16, 18]), -1).reshape(-1, 2).repeat(5, 0)
    masks = np.full((1, 32, 32), 255, np.uint8)
    masks[0, :, 20:] = 0
    plain = Importance()
    found = importance(masks, part_boxes(marks))[0]
    assert found[0, 31] == np.float32(plain.background) and found[0, 0] == plain.head
    assert found[25, 8] == plain.mouth and found[8, 8] == plain.eye
    assert found[25, 30] == np.float32(plain.background)  # nothing there to be seen
    edged = importance(masks, part_boxes(marks), Importance(edge=3.0))[0]
    outline = np.zeros((32, 32), bool)
    outline[:, 19:21] = True  # a pixel on both sides
    np.testing.assert_array_equal(edged[outline & (found < 3)], 3)
    np.testing.assert_array_equal(edged[~outline], found[~outline])
    with pytest.raises(UserError, match='importance.eye: -1.0; must not be negative'):
        Importance(eye=-1.0)


@pytest.mark.slow
def test_a_step_of_rays_descends_its_own_loss(trained, pictures):
    """Gradient descent on one batch makes its loss smaller: what is rendered is compared with the right pixels."""
    from data_pipelines.sources import HeadShards
    from data_pipelines.streams import first_sets

    config = run_config(pictures).model
    sets = first_sets(HeadShards(pictures), 4, 0, config.settings.train.batch_size)
    batch = training.with_host_arrays(config, sets, rays=True)
    (step,) = trained.programs.values()
    state = step.put_state(training.init_state(config, init(config, jax.random.key(0))))
    found = []
    for _ in range(100):
        state, metrics = step.step(state, step.put_batch(batch))
        found.append(float(metrics['loss']))
    assert np.mean(found[-10:]) < 0.6 * np.mean(found[:5])


@pytest.mark.slow
def test_first_values_let_the_input_through():
    config = dataclasses.replace(ModelConfig.heads().encoder, in_size=32, out_size=16)
    plain = styleunet.init_params(jax.random.key(0), config)
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
    images = resize(images, 32)

    run = jax.jit(styleunet.StyleUNet(config).apply)

    def share(params):
        out = np.asarray(run({'params': params}, images))
        return float(out.std(0).mean() / out.std())

    assert share(plain) < 0.05 and share(styleunet.keep_variance(plain)) > 0.1
    silent = run({'params': styleunet.silence(plain)}, images)
    np.testing.assert_array_equal(silent, 0)


@pytest.mark.slow
def test_super_resolution_starts_as_enlargement():
    config = dataclasses.replace(ModelConfig.tiny(), sr_skip=True)
    params = init(config, jax.random.key(0))['params']
    features = jax.random.uniform(
        jax.random.key(1), (1, config.raw_size, config.raw_size, config.settings.head.out_channels)
    )
    found = jax.jit(lambda p, x: superresolve(p, config, x))(params, features)
    np.testing.assert_allclose(found, resize(features[..., :3], config.img_resolution), atol=1e-6)
    planes = jax.eval_shape(
        lambda p, x: encode(p, config, x), params, jnp.zeros((1, config.image_size, config.image_size, 3))
    )
    assert planes.shape == (1, *config.plane_shape)


@pytest.mark.slow
def test_the_front_plane_can_start_from_the_picture():
    """A place in space looks up the canonical picture's pixel that lies before it: x to the right, y upwards."""
    from avatar_jax.methods.gpavatar.model import PICTURE_GAIN
    from avatar_jax.ops.grid_sample import sample_planes_mean

    config = dataclasses.replace(ModelConfig.tiny(), plane_skip=True)
    params = init(config, jax.random.key(0))['params']
    params = {**params, 'style_tplane': styleunet.silence(params['style_tplane'])}
    size = config.image_size
    y, x = jnp.meshgrid(jnp.arange(size) + 0.5, jnp.arange(size) + 0.5, indexing='ij')
    picture = jnp.stack([x, y, jnp.full_like(x, size / 2)], -1)[None] / size  # red grows to the right, green downwards
    places = jnp.array([[[0.4, 0.2, 0.7], [-0.3, -0.5, 0.1]]])

    @jax.jit
    def looked_up(params, picture):
        planes = encode(params, config, picture)
        return planes, sample_planes_mean(planes, places, 2.0, 'orthogonal')[0, :, :3]

    planes, found = looked_up(params, picture)
    found = 3 * found / PICTURE_GAIN + 0.5
    np.testing.assert_allclose(found, [[0.7, 0.4, 0.5], [0.35, 0.75, 0.5]], atol=1e-5)
    np.testing.assert_array_equal(planes[:, 1:], 0)


@pytest.mark.slow
def test_first_values_of_the_head_let_features_through():
    config, field = ModelConfig.heads().settings.head, ModelConfig.heads().settings.field
    plain = head.init_head(config, field, jax.random.key(0))
    features = jax.random.normal(jax.random.key(1), (256, config.plane_channels + field.feature_dim))
    places, ahead = jnp.zeros((256, 3)), jnp.tile(jnp.array([0.0, 0, 1]), (256, 1))

    @jax.jit
    def spread(params):
        return head.decode(params, config, features, places, ahead)[1][:, 3:].std(0).mean()

    assert spread(plain) < 0.1 and spread(head.keep_variance(plain)) > 0.5
    small = head.keep_variance(plain)['points_querier']['points_feature']['weight']
    np.testing.assert_allclose(small, head.FASTER * plain['points_querier']['points_feature']['weight'])
