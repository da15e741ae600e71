"""Every field of every configuration is read by code, or takes one value only: none is taken and ignored."""

import ast
import dataclasses
from functools import lru_cache
from pathlib import Path

import pytest

from avatar_jax.errors import UserError
from tests.configs_found import configs

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ('avatar_jax', 'data_pipelines', 'launch')
# Fields that exist because files of other programs have them, with the only value that they may have.
ONE_VALUE = {'avatar_jax.render.config.RenderConfig': {'clamp_mode': 'softplus'}}
# Classes whose fields are weights of terms, all of them read by the name of the term: which module does it.
BY_NAME = {'avatar_jax.faces.recon_losses.ReconLossWeights': 'avatar_jax/faces/recon_losses.py'}


class Reads(ast.NodeVisitor):
    """Attributes that a module reads, and texts in it where it reads attributes by name.

    Checks of fields in ``__post_init__`` and texts that document something do not count.
    """

    def __init__(self, source):
        self.attributes, self.texts = set(), set()
        self.visit(ast.parse(source))
        if not self.attributes & {'getattr', 'attrgetter'} and 'getattr(' not in source:
            self.texts = set()

    def visit_FunctionDef(self, node):
        if node.name != '__post_init__':
            self.generic_visit(node)

    def visit_Attribute(self, node):
        if isinstance(node.ctx, ast.Load):
            self.attributes.add(node.attr)
        self.generic_visit(node)

    def visit_Expr(self, node):
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, str):
            self.texts.add(node.value)


@lru_cache
def reads():
    """Names of attributes that are read somewhere."""
    found = set()
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob('*.py')):
            module = Reads(path.read_text())
            found |= module.attributes | {text for text in module.texts if text.isidentifier()}
    return found


@pytest.mark.parametrize('name', sorted(configs()))
def test_every_field_is_read(name):
    if name in BY_NAME:
        assert 'getattr(' in (ROOT / BY_NAME[name]).read_text()
        return
    unread = {f.name for f in dataclasses.fields(configs()[name])} - reads()
    assert unread == set(ONE_VALUE.get(name, ())), 'read these, remove them, or refuse all values but one'


@pytest.mark.parametrize('name', sorted(ONE_VALUE))
def test_fields_that_nothing_reads_take_one_value_only(name):
    for field, value in ONE_VALUE[name].items():
        config = configs()[name](**{field: value})
        with pytest.raises(UserError, match=field):
            dataclasses.replace(config, **{field: 'another'})


def test_the_configurations_that_runs_and_models_have_are_among_them():
    """Configs that trainings and models reach, by the example of each training."""
    from avatar_jax.methods.base import methods
    from launch.config_args import load_run

    def reached(config):
        yield f'{type(config).__module__}.{type(config).__name__}'
        for field in dataclasses.fields(config):
            if dataclasses.is_dataclass(value := getattr(config, field.name)):
                yield from reached(value)

    examples = [t.example for m in methods() for t in m.trainings.values() if t.example]
    assert len(examples) > 2
    for example in examples:
        missing = set(reached(load_run(example)[1])) - set(configs())
        assert not missing, example


def test_a_field_that_nothing_reads_is_found():
    module = Reads(
        '''class A:
    """unread: 'documented'."""
    unread: int = 0
    def __post_init__(self):
        check(self.unread)
    def f(self):
        self.written = 1
        return self.read + getattr(self, 'by_name')
'''
    )
    assert module.attributes == {'read'} and module.texts == {'by_name'}
