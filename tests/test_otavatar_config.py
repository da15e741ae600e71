"""Presets, overrides, ablations and controller variants of OTAvatar."""

import dataclasses
from operator import attrgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from avatar_jax.errors import UserError
from avatar_jax.methods.otavatar.config import (
    ABLATIONS,
    PRESET_DIFFERENCES,
    SHARED_CHOICES,
    OTAvatarConfig,
)
from avatar_jax.methods.otavatar.controller import (
    Controller,
    ControllerConfig,
    abstract_params,
    from_release_keys,
    to_release_keys,
)

SMALL = {'channels': 8, 'directions': 3, 'num_ws': 4, 'w_dim': 16}


def test_presets_differ_exactly_where_they_say():
    paper, release = OTAvatarConfig.paper(), OTAvatarConfig.release()

    def leaves(config, prefix=''):
        for f in dataclasses.fields(config):
            value = getattr(config, f.name)
            # An optimizer is one option.
            if dataclasses.is_dataclass(value) and not hasattr(value, 'weight_decay'):
                yield from leaves(value, f'{prefix}{f.name}.')
            else:
                yield f'{prefix}{f.name}'

    different = {p for p in leaves(paper) if attrgetter(p)(paper) != attrgetter(p)(release)}
    assert different == {p for paths in PRESET_DIFFERENCES.values() for p in paths} | {'preset'}
    for paths in SHARED_CHOICES.values():
        for path in paths:
            assert attrgetter(path)(paper) == attrgetter(path)(release)


def test_configuration_round_trip_and_overrides():
    for preset in (OTAvatarConfig.paper(), OTAvatarConfig.release()):
        assert OTAvatarConfig.from_dict(preset.to_dict()) == preset
    config = OTAvatarConfig.from_dict({'preset': 'release', 'loss': {'eyes': True}, 'train.batch_size': 2})
    assert config.loss.eyes and config.train.batch_size == 2 and config.clamp_radius == 5.0
    assert config == OTAvatarConfig.release(loss__eyes=True, train__batch_size=2)
    assert OTAvatarConfig.paper().replace(loss__local=3).loss.local == 3.0


@pytest.mark.parametrize(
    ('values', 'text'),
    [
        ({'loss': {'eys': True}}, "did you mean 'eyes'"),
        ({'learning_rate': 1.0}, 'learning_rate: unknown option'),
        ({'train.batch_size': 'many'}, 'is not int'),
        ({'train.average_gradients': 1}, 'is not bool'),
        ({'preset': 'best'}, 'use one of paper, release'),
        ({'loss': {'local': -1.0}}, 'loss.local'),
        ({'decoupling': {'mode': 'randomly'}}, 'decoupling.mode: .randomly.; use one of'),
        ({'controller': {'code_book': 'free'}}, 'controller.code_book'),
        ({'controller': {'directions': 600}}, 'do not fit'),
        ({'clamp_radius': 0.0}, 'clamp_radius'),
        ({'inversion': {'w_steps': 0, 'wplus_steps': 0}}, 'inversion.w_steps: 0; wplus_steps is 0, too'),
    ],
)
def test_bad_options_are_refused_in_one_line(values, text):
    with pytest.raises(UserError, match=text) as error:
        OTAvatarConfig.from_dict(values)
    assert '\n' not in str(error.value)


def test_ablations_change_the_configuration():
    for name in ABLATIONS:
        for preset in (OTAvatarConfig.paper(), OTAvatarConfig.release()):
            assert preset.ablation(name) != preset
    with pytest.raises(UserError, match='did you mean'):
        OTAvatarConfig.paper().ablation('n_mo_2')


def test_inversion_stages():
    release = OTAvatarConfig.release().inversion.stages()
    assert [(s.space, s.steps, s.sr_steps, s.return_previous) for s in release] == [
        ('w', 100, 10, True),
        ('w+', 100, 10, False),
    ]
    paper = OTAvatarConfig.paper(inversion__w_steps=7).inversion.stages()
    assert [(s.steps, s.sr_steps, s.return_previous, s.optimise_intrinsics) for s in paper] == [
        (7, 7, False, False),
        (100, 100, False, False),
    ]
    assert [s.space for s in OTAvatarConfig.paper().ablation('identity_in_w').inversion.stages()] == ['w']


# ---------------------------------------------------------------------------------------------------------- controller


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'temporal': 'plain'},
        {'mlp_shared': False},
        {'short_cut': False},
        {'use_crop': True},
        {'motion_space': 'w'},
        {'code_book': 'linear'},
        {'scaling': True, 'motion_space': 'w'},
        {'temporal_layers': 2, 'mlp_layers': 2},
    ],
    ids=lambda c: '-'.join(map(str, c)) or 'default',
)
def test_controller_variants(changes):
    config = ControllerConfig(**SMALL | changes)
    module = Controller(config)
    motion = jnp.asarray(np.random.default_rng(0).normal(size=(2, 27, 73)), jnp.float32)
    params = module.init(jax.random.key(0), motion, method='codes')['params']
    params = jax.tree.map(lambda x: x + 0.1, params)  # the initial outputs are nearly zero
    code = module.apply({'params': params}, motion, method='codes')
    assert code.w_x.shape == (2, 4, 16) and np.isfinite(code.w_x).all()
    assert (code.scaling is None) == (not config.scaling)
    spread = float(jnp.abs(code.w_x - code.w_x[:, :1]).max())
    assert (spread == 0) == (config.motion_space == 'w')
    # Only the channels that the configuration reads matter.
    beyond = motion.at[..., config.motion_channels :].add(1.0)
    assert (module.apply({'params': params}, beyond, method='codes').w_x == code.w_x).all()
    last = motion.at[..., config.motion_channels - 1].add(1.0)
    assert (module.apply({'params': params}, last, method='codes').w_x != code.w_x).any()
    # The state dict survives the way out and back, and lists the shared layer once per use.
    flat = to_release_keys(params, config)
    back = from_release_keys({f'module.{k}': v for k, v in flat.items()}, config)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True))
    hidden = [k for k in flat if k.startswith('mapping_Refine') and k.endswith('weight')]
    assert len(hidden) == config.mlp_layers + 1
    layers = {k for k in flatten_dict(params) if k[0] == 'mapping_Refine' and k[-1] == 'weight'}
    assert len(layers) == (2 if config.mlp_shared else config.mlp_layers + 1)


def test_full_size_controller_has_the_published_number_of_parameters():
    count = lambda **c: sum(x.size for x in jax.tree.leaves(abstract_params(ControllerConfig(**c))))
    assert count() == 869_420
    assert count(mlp_shared=False) == 869_420 + 4 * (256 * 256 + 256)


@pytest.mark.slow
def test_controller_initialisation():
    params = Controller().init(jax.random.key(1), jnp.zeros((1, 27, 70)))['params']
    weight = params['mapping_3DMM']['encoder0']['1']['weight']
    expected = 0.02 * np.sqrt(2 / (256 * 3 + 256 * 3))
    assert abs(float(weight.std()) / expected - 1) < 0.02
    weight = params['mapping_Refine']['10']['weight']
    assert abs(float(weight.std()) / (0.02 * np.sqrt(2 / (256 + 300))) - 1) < 0.02
    assert abs(float(params['direction']['weight'].std()) - 1) < 0.03
    assert all((x == 0).all() for path, x in flatten_dict(params).items() if path[-1] == 'bias')


def test_unequal_copies_of_the_shared_layer_are_refused():
    config = ControllerConfig(**SMALL)
    params = Controller(config).init(jax.random.key(0), jnp.zeros((1, 27, 70)))['params']
    flat = to_release_keys(params, config)
    flat['mapping_Refine.4.weight'] = flat['mapping_Refine.4.weight'] + 1
    with pytest.raises(UserError, match='mlp_shared=False'):
        from_release_keys(flat, config)
    del flat['mapping_Refine.4.weight'], flat['direction.weight']
    with pytest.raises(UserError, match=r'direction\.weight'):
        from_release_keys(flat, config)


def test_controller_input_is_checked():
    module = Controller(ControllerConfig(**SMALL))
    with pytest.raises(ValueError, match='expected'):
        module.init(jax.random.key(0), jnp.zeros((1, 27, 69)))
    with pytest.raises(ValueError, match='expected'):
        module.init(jax.random.key(0), jnp.zeros((1, 24, 70)))
