"""Fields of dataclasses as options of commands: names, kinds, defaults and texts."""

from dataclasses import dataclass, field

import pytest

from avatar_jax.checks import OPTION, Check
from avatar_jax.cli import Parser
from avatar_jax.errors import UserError
from avatar_jax.options import add_options, converted, from_arguments, help_of, option, option_fields


@dataclass(frozen=True)
class Walk:
    steps: int = option(3, 'how many')
    speed: float | None = option(None, 'metres per second')
    way: str = option('north', 'where to', choices=('north', 'south'), flag='--to', nargs='?', const='south')
    names: tuple[str, ...] = option((), 'who walks, 100 % of them', metavar='NAME')
    slowly: bool = option(False, 'take time')
    hidden: int = 7
    inner: dict = field(default_factory=dict)

    def __post_init__(self):
        Check(self, OPTION).at_least(1, 'steps')


def walked(*arguments, **others):
    parser = Parser(prog='walk')
    add_options(parser, Walk)
    return from_arguments(Walk, parser.parse_args(arguments), **others)


def test_options_become_fields():
    assert walked() == Walk()
    given = walked('--steps', '5', '--speed', '2', '--to', '--names', 'a', 'b', '--slowly', hidden=8)
    assert given == Walk(5, 2.0, 'south', ('a', 'b'), True, 8)
    with pytest.raises(UserError, match='--steps 0: must be at least 1'):
        walked('--steps', '0')
    with pytest.raises(UserError, match='--to: invalid choice'):
        walked('--to', 'west')


def test_help_says_kinds_and_defaults():
    parser = Parser(prog='walk')
    add_options(parser, Walk)
    text = ' '.join(parser.format_help().split())
    for part in (
        '--steps N how many (default: 3)',
        '--speed F metres per second',
        'where to (default: north)',
        '100 %',
    ):
        assert part in text
    assert list(option_fields(Walk)) == ['steps', 'speed', 'way', 'names', 'slowly'] and '--hidden' not in text
    said = [help_of(f) for f in option_fields(Walk).values()]
    assert said[1] == 'metres per second' and said[4] == 'take time'


@pytest.mark.parametrize(
    ('text', 'kind', 'metadata', 'value'),
    [
        ('3', int, {}, 3),
        ('yes', bool, {}, True),
        ('off', bool, {}, False),
        (['a'], tuple, {}, ('a',)),
        ('w', str, {'choices': ('w', 'w+')}, 'w'),
    ],
)
def test_texts_become_values(text, kind, metadata, value):
    assert converted(text, kind, '--x', metadata) == value


@pytest.mark.parametrize(
    ('text', 'kind', 'metadata', 'said'),
    [
        ('much', float, {}, '--x much: give a number'),
        ('3.5', int, {}, '--x 3.5: give a whole number'),
        ('perhaps', bool, {}, '--x perhaps: give yes or no'),
        ('codebok', str, {'choices': ('codebook', 'none')}, 'did you mean codebook'),
    ],
)
def test_texts_that_are_no_values_are_refused(text, kind, metadata, said):
    with pytest.raises(UserError, match=said):
        converted(text, kind, '--x', metadata)
