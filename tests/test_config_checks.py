"""A value that a configuration does not take is refused in one line: which field, its value, and what to do."""

import dataclasses
import re

import pytest

from avatar_jax.checks import OPTION, Check, FieldError
from avatar_jax.configure import from_plain, updated
from avatar_jax.errors import UserError
from tests.configs_found import configs

# What else a config needs to be made, where its fields have no defaults.
NEEDED = {
    'avatar_jax.driving.request.Request': {'motion': 'speech:0'},
    'avatar_jax.train.loop.LoopConfig': {'total_steps': 10},
    'avatar_jax.train.run.PersonConfig': {'folder': 'talk'},
}


def made(name):
    """A configuration with the values that it has by itself; None for one that needs others."""
    cls, needed = configs()[name], NEEDED.get(name, {})
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.init
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and f.name not in needed
    ]
    return None if missing else cls(**needed)


def odd_values(value):
    """Values of the same type that hardly anything takes."""
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int | float):
        return [type(value)(-1), type(value)(0), *([float('nan')] if isinstance(value, float) else [])]
    if isinstance(value, str):
        return ['nonsense']
    if isinstance(value, tuple) and value and all(type(v) in (int, float) for v in value):
        return [(-3, *value[1:]), ()]
    return []


CHECKED = sorted(name for name, cls in configs().items() if hasattr(cls, '__post_init__'))


def refusals(name):
    """(field, value, message) of every odd value that a config refuses; other exceptions are not caught."""
    config = made(name)
    for field in dataclasses.fields(config) if config else ():
        for value in odd_values(getattr(config, field.name)):
            try:
                dataclasses.replace(config, **{field.name: value})
            except UserError as error:
                yield field.name, value, str(error)


@pytest.mark.parametrize('name', CHECKED)
def test_messages_name_the_one_field_that_is_wrong(name):
    for field, value, said in refusals(name):
        names = f'{field}|{field.replace("_", "-")}'
        assert re.match(rf'(--|[\w.]+\.)?({names})(\[\d+\])?[: ]', said), (field, value, said)
        assert '\n' not in said and len(said) < 250, said
        assert str(value) in said or (value and str(value[0]) in said), (field, value, said)
        assert len(re.split('; |: ', said, maxsplit=2)[-1]) > 5, said  # what is allowed, or what to do


def test_all_kinds_of_configs_are_looked_at():
    assert len(CHECKED) > 60
    assert sum(made(name) is None for name in CHECKED) < 4
    assert sum(len(list(refusals(name))) for name in CHECKED) > 300


def test_the_message_says_where_the_field_stands():
    from avatar_jax.methods.otavatar.train import RunConfig

    with pytest.raises(FieldError, match=r'^model\.settings\.train\.batch_size: 0; must be at least 1$'):
        from_plain(RunConfig, {'model': {'settings': {'train': {'batch_size': 0}}}})
    with pytest.raises(FieldError, match=r'^model\.settings\.sigma_w: .many.; use one of ones, std$'):
        updated(RunConfig(), {'model': {'settings': {'sigma_w': 'many'}}})
    with pytest.raises(FieldError, match=r'^model\.settings\.controller\.w_dim: 3; the generator reads 512'):
        from_plain(RunConfig, {'model': {'settings': {'controller': {'w_dim': 3, 'code_book': 'linear'}}}})


def test_checks():
    check = Check.values('train', steps=3, rate=float('nan'), widths=(1, 0), absent=None, name='x')
    check.at_least(3, 'steps', 'absent')
    check.above(0, 'absent')
    check.one_of('name', 'x', 'y')
    for refused, said in (
        (lambda: check.at_least(4, 'absent', 'steps'), 'train.steps: 3; must be at least 4'),
        (lambda: check.above(3, 'steps'), 'train.steps: 3; must be more than 3'),
        (lambda: check.within(0, 2, 'steps'), 'train.steps: 3; must be between 0 and 2'),
        (lambda: check.at_least(0, 'rate'), 'train.rate: nan; must not be negative'),
        (lambda: check.decay('rate'), 'train.rate: nan; give a decay of at least 0 and below 1'),
        (lambda: check.at_least(1, 'widths'), 'train.widths[1]: 0; must be at least 1'),
        (lambda: check.length(3, 'widths'), 'train.widths: (1, 0); give 3 values'),
        (lambda: check.power_of_two(1, 'steps'), 'train.steps: 3; use a power of two of at least 1'),
        (lambda: check.one_of('name', 'a', 3), "train.name: 'x'; use one of a, 3"),
        (lambda: Check.values(OPTION, per_call=0).at_least(1, 'per_call'), '--per-call 0: must be at least 1'),
    ):
        with pytest.raises(FieldError) as error:
            refused()
        assert str(error.value) == said


def test_former_names_are_read():
    from avatar_jax.configure import current_names, run_fields
    from avatar_jax.io.weights import load_weights, shipped
    from avatar_jax.methods.otavatar.model import ModelConfig
    from avatar_jax.methods.otavatar.train import RunConfig
    from avatar_jax.train.checkpoints import config_difference

    former = {'method': {'sigma_w': 'std', 'controller': {'basis': 'linear'}}}
    config = ModelConfig.from_dict(former)
    assert config.settings.sigma_w == 'std' and config.settings.controller.code_book == 'linear'
    assert set(config.to_dict()) >= {'settings', 'generator'} and 'method' not in config.to_dict()
    # Weight files of before, and configs of the user's own.
    assert 'method' in load_weights(shipped('heads128')).config
    assert ModelConfig.from_dict(load_weights(shipped('heads128')).config).settings.controller.code_book == 'orthogonal'
    values = run_fields('otavatar', RunConfig()).to_dict()
    values['model']['method'] = values['model'].pop('settings')
    del values['method']
    assert from_plain(RunConfig, values) == RunConfig()
    # A checkpoint of before belongs to the run with the names of today, and still tells what differs.
    assert config_difference(current_names(RunConfig, values), RunConfig()) is None
    values['model']['method']['sigma_w'] = 'std'
    assert config_difference(current_names(RunConfig, values), RunConfig()).startswith('model.settings.sigma_w = "std"')
    with pytest.raises(FieldError, match=r'^settings\.sigma_w: .many.; use one of'):
        ModelConfig.from_dict({'method': {'sigma_w': 'many'}})


@pytest.mark.parametrize(
    ('count', 'seed', 'said'),
    [(0, -1, '--identities 0: must be at least 1'), (1, -1, '--seed -1: must not be negative')],
)
def test_people_of_videos_are_checked_one_option_after_the_other(count, seed, said, tmp_path):
    from data_pipelines.test_videos import video_items

    with pytest.raises(UserError) as caught:
        video_items(None, count, seed, 1, 125, tmp_path)
    assert str(caught.value) == said
