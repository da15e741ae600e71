"""EG3D's network pickles and state dicts."""

import json
import re

import numpy as np
import pytest

from avatar_jax.convert.layout import to_torch, torch_shapes
from avatar_jax.convert.report import Report
from avatar_jax.errors import UserError
from avatar_jax.io.weights import load_weights
from avatar_jax.methods.eg3d.files import abstract_generator, load_discriminator, load_generator
from avatar_jax.methods.eg3d.state_dicts import from_shapes, released_models
from avatar_jax.models.triplane import GeneratorConfig
from tests.convert import checkpoints as c
from tests.convert import writers as w
from tests.convert.known import convert, export, recognise
from tests.parity import golden as g


def same(flat, expected):
    """The imported numbers are those of the state dict, all of them, bit for bit."""
    expected = {k: v for k, v in expected.items() if not k.endswith(('resample_filter', 'num_batches_tracked'))}
    assert set(flat) == set(expected)
    for key, value in expected.items():
        assert flat[key].dtype == np.float32 and np.array_equal(flat[key], value), key


@pytest.fixture(scope='module')
def pickle_file(tmp_path_factory):
    return w.write(tmp_path_factory.mktemp('eg3d'), 'network.pkl', c.eg3d_pickle(c.small_generator()))


@pytest.mark.slow
def test_network_pickle(pickle_file, tmp_path):
    done = convert(pickle_file, tmp_path)
    assert {p.name: m for p, m in done.files.items()} == {
        'eg3d.safetensors': 'eg3d',
        'eg3d_training.safetensors': 'eg3d',
        'eg3d_discriminator.safetensors': 'eg3d_discriminator',
    }
    config = c.small_generator()
    for name, seed in (('eg3d', 0), ('eg3d_training', 3)):
        variables, read, _ = load_generator(tmp_path / f'{name}.safetensors')
        assert read == config
        same(to_torch(variables), c.generator_state(config, seed))
    variables, module = load_discriminator(tmp_path / 'eg3d_discriminator.safetensors')
    same(to_torch(variables), c.discriminator_state())
    assert module.img_resolution == 16 and module.conv_clamp == 256

    report = json.loads((tmp_path / 'eg3d.report.json').read_text())
    assert not report['missing'] and not report['unexpected'] and report['unused']['training_set_kwargs']
    stored = load_weights(tmp_path / 'eg3d.safetensors')
    assert stored.provenance['source_sha256'] == report['sha256'] and len(report['sha256']) == 64
    assert stored.variables['dataset']['dataset_label_std'].shape == (25,), 'statistics of the labels are kept'


def test_asking_for_the_kind_takes_everything_that_belongs_to_it(pickle_file, tmp_path):
    assert convert(pickle_file, tmp_path / 'a', kind='eg3d').files.keys() == {
        tmp_path / 'a' / f'{name}.safetensors' for name in ('eg3d', 'eg3d_training', 'eg3d_discriminator')
    }
    done = convert(pickle_file, tmp_path / 'b', kind='eg3d_discriminator', allow=['G/*', 'G_ema/*'])
    assert list(done.files.values()) == ['eg3d_discriminator']
    # Another discriminator beside the generator is no part of such a file, and no reason not to take the generator.
    value = {'G_ema': c.tensors(c.generator_state(c.small_generator())), 'judge': c.tensors(c.discriminator_state())}
    path = w.write(tmp_path, 'both.pth', w.torch_zip(value))
    with pytest.raises(UserError, match='holds 2 networks.*choose with --as'):
        convert(path, tmp_path / 'c')
    with pytest.raises(UserError, match='unexpected: judge/'):
        convert(path, tmp_path / 'c', kind='eg3d')
    assert list(convert(path, tmp_path / 'c', kind='eg3d', allow=['judge/*']).files.values()) == ['eg3d']


@pytest.mark.slow
def test_options_come_from_the_object(tmp_path):
    path = w.write(
        tmp_path, 'network.pkl', c.eg3d_pickle(c.small_generator(), raw=128, depth_resolution=9, box_warp=2.0)
    )
    convert(path, tmp_path)
    _, config, _ = load_generator(tmp_path / 'eg3d.safetensors')
    assert config.neural_rendering_resolution == 128
    assert (config.rendering.depth_resolution, config.rendering.box_warp) == (9, 2.0)
    assert config.rendering.plane_axes == 'legacy'


def test_the_axes_of_the_planes_are_those_of_the_file(tmp_path):
    axes = c.AXES.copy()
    axes[2] = [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    value = {
        'G_ema': c.network(
            c.generator_state(c.small_generator()),
            axes,
            _init_args=(),
            neural_rendering_resolution=64,
            _init_kwargs=c.init_kwargs(c.small_generator()),
        )
    }
    convert(w.write(tmp_path, 'a.pkl', w.pickled(value, w.Options(4))), tmp_path)
    assert load_generator(tmp_path / 'eg3d.safetensors')[1].rendering.plane_axes == 'ordered'
    value = {
        'G_ema': c.network(
            c.generator_state(c.small_generator()),
            np.zeros((3, 3, 3), np.float32),
            _init_args=(),
            _init_kwargs=c.init_kwargs(c.small_generator()),
        )
    }
    with pytest.raises(UserError, match='renderer'):
        convert(w.write(tmp_path, 'b.pkl', w.pickled(value, w.Options(4))), tmp_path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'decoder.net.0.bias': None}, 'missing: G_ema/decoder.net.0.bias'),
        ({'decoder.net.0.bias': np.zeros(3, np.float32)}, 'wrong shape: G_ema/decoder.net.0.bias'),
        ({'decoder.net.7.bias': np.zeros(3, np.float32)}, 'unexpected: G_ema/decoder.net.7.bias'),
        ({'backbone.synthesis.b4.resample_filter': np.ones((4, 4), np.float32)}, 'another resampling filter'),
        ({'decoder.net.0.bias': np.full(64, np.nan, np.float32)}, 'NaN'),
        ({'decoder.net.0.bias': np.zeros(64, np.int64)}, 'type int64'),
    ],
)
def test_what_does_not_fit_is_refused(change, message, tmp_path):
    path = w.write(tmp_path, 'network.pkl', c.eg3d_pickle(c.small_generator(), change=change))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        convert(path, tmp_path / 'out')
    assert '\n' not in str(error.value)
    assert not list((tmp_path / 'out').glob('*.report.json'))


def test_unknown_options_must_be_allowed(tmp_path):
    path = w.write(tmp_path, 'network.pkl', c.eg3d_pickle(c.small_generator(), shiny=3))
    with pytest.raises(UserError, match='rendering_kwargs.shiny'):
        convert(path, tmp_path / 'out')
    done = convert(path, tmp_path / 'out', allow=['*:rendering_kwargs.shiny'])
    assert 'G_ema:rendering_kwargs.shiny' in done.report.unused
    with pytest.raises(UserError, match='matches no unexpected entry'):
        convert(path, tmp_path / 'out', allow=['*:rendering_kwargs.shiny', 'nothing*'])


def test_shapes_and_options_must_agree(tmp_path):
    kwargs = c.init_kwargs(c.small_generator()) | {'w_dim': 16}
    value = {'G_ema': c.network(c.generator_state(c.small_generator()), c.AXES, _init_args=(), _init_kwargs=kwargs)}
    with pytest.raises(UserError, match='contradicts itself: w_dim 16'):
        convert(w.write(tmp_path, 'a.pkl', w.pickled(value, w.Options(4))), tmp_path)


def test_export_and_import_again(pickle_file, tmp_path):
    convert(pickle_file, tmp_path)
    for name in ('eg3d', 'eg3d_discriminator'):
        convert(export(tmp_path / f'{name}.safetensors', tmp_path / 'exported'), tmp_path / 'again')
        before, after = (load_weights(folder / f'{name}.safetensors') for folder in (tmp_path, tmp_path / 'again'))
        assert (before.sha256, before.config, before.method) == (after.sha256, after.config, after.method)


@pytest.mark.slow
def test_exported_names_are_the_original_ones(tmp_path):
    path = g.root() / 'eg3d' / 'state_dict_ffhq512.json'
    if not path.exists():
        pytest.skip(f'no {path}')
    from avatar_jax.methods.eg3d.files import abstract_discriminator
    from avatar_jax.methods.eg3d.state_dicts import discriminator_keys, generator_keys

    zero = np.zeros((), np.float32)

    def zeros(tree):
        return {k: zeros(v) if hasattr(v, 'items') else np.broadcast_to(zero, v.shape) for k, v in tree.items()}

    full = c.DISCRIMINATOR | {'img_resolution': 512, 'channel_base': 32768, 'channel_max': 512, 'mapping_layers': 8}
    entries = json.loads(path.read_text())
    made = {
        'G': generator_keys(zeros(abstract_generator(GeneratorConfig.ffhq512())), '8XDC'),
        'D': discriminator_keys(zeros(abstract_discriminator(full))),
    }
    for part, flat in made.items():
        assert {k: v.shape for k, v in flat.items()} == {k: tuple(s) for k, s, _, _ in entries[part]}
        # The other direction: the released state dicts are recognised, and everything in them is known.
        raw = c.abstract_file(
            tmp_path, {k: tuple(s) for k, s, _, _ in entries[part]}, f'{part}_ema/' if part == 'G' else ''
        )
        raw.tensors = {k: c.FIR if k.endswith('resample_filter') else v for k, v in raw.tensors.items()}
        kind, source = recognise(raw, 'eg3d-ffhq512-128' if part == 'G' else None)
        report = Report(kind.name)
        (plan,) = kind.plan(source, report)
        report.check('file')
        assert len(report.mapped) == sum(not k.endswith('resample_filter') for k in flat)
        if part == 'G':
            assert plan.config['neural_rendering_resolution'] == 128


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(released_models()))
def test_state_dicts_of_every_class(name, tmp_path):
    """The shapes give the sizes; what they leave open is asked for, and what does not fit is refused."""
    config = released_models()[name]
    config = config.replace(z_dim=8, w_dim=8, channel_max=8, plane_resolution=16)
    shapes = torch_shapes(abstract_generator(config))
    own = {} if config.superresolution == '8XDC' else {'superresolution.resample_filter': (4, 4)}
    shapes |= {'superresolution.block0.resample_filter': (4, 4)} | own
    flat = c.abstract_file(tmp_path, shapes).tensors
    assert from_shapes(flat, name, 'file') == config
    fitting = {n for n, m in released_models().items() if m.superresolution == config.superresolution}
    fitting |= {'eg3d-4x-256', 'eg3d-deepfp32-256'} if config.img_resolution == 256 else set()
    if len(fitting) > 1:
        with pytest.raises(UserError, match='choose with --as') as error:
            from_shapes(flat, None, 'file')
        assert all(n in str(error.value) for n in fitting)
    else:
        assert from_shapes(flat, None, 'file') == config
    for other in set(released_models()) - fitting:
        with pytest.raises(UserError, match='its shapes are not those of'):
            from_shapes(flat, other, 'file')


def test_state_dict_export(tmp_path):
    config = c.small_generator()
    state = c.generator_state(config)
    for name, value in (
        ('a.pth', {'G_ema': c.tensors(state)}),
        ('b.pth', c.tensors(state)),
        ('c.pth', {'state_dict': c.tensors({f'module.{k}': v for k, v in state.items()})}),
    ):
        out = tmp_path / name[0]
        convert(w.write(tmp_path, name, w.torch_zip(value)), out)
        variables, read, _ = load_generator(out / 'eg3d.safetensors')
        same(to_torch(variables), state)
        assert read.superresolution == '2X' and read.sr_channels == (3, 2) and read.rendering.white_back


def test_network_pickle_sample(tmp_path):
    """The sample in the published layout gives its expected tensors."""
    path = g.root() / 'eg3d' / 'network_pickle_sample.pkl'
    if not path.exists():
        pytest.skip(f'no {path}')
    expected = g.load(path.with_name('network_pickle_sample_expected.npz'))
    convert(path, tmp_path)
    names = {'G_ema': 'eg3d', 'G': 'eg3d_training', 'D': 'eg3d_discriminator'}
    for part, name in names.items():
        stored = load_weights(tmp_path / f'{name}.safetensors')
        same(
            to_torch(stored.variables),
            {k.removeprefix(part + '.'): v for k, v in expected.param.items() if k.startswith(part + '.')},
        )
    _, config, _ = load_generator(tmp_path / 'eg3d.safetensors')
    assert config.neural_rendering_resolution == expected.config['neural_rendering_resolution']
    given = expected.config['init_kwargs']
    assert all(getattr(config, k) == given[k] for k in ('z_dim', 'w_dim', 'c_dim', 'img_resolution', 'channel_base'))
    assert all(
        getattr(config.rendering, k) == given['rendering_kwargs'][k] for k in ('ray_start', 'ray_end', 'box_warp')
    )
