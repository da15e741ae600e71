"""Properties that NOFA must have, those without a better place; docs/nofa.md lists all of them."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.inversion.tuning import Pivot
from avatar_jax.methods.nofa import fit
from avatar_jax.methods.nofa import model as nofa
from avatar_jax.methods.nofa.config import DeformationConfig, ModelConfig
from avatar_jax.methods.nofa.deformation import DeformationField, backward, condition, offsets
from tests.comparison import close
from tests.nofa_tiny import portrait, variables_of

ROOT = Path(__file__).parent.parent
CONFIG = ModelConfig.tiny()
VARIABLES = variables_of(CONFIG)
FIELD = DeformationConfig(width=16, w_width=8)


@pytest.mark.slow
def test_a_fresh_field_moves_no_point_by_a_bit():
    """Whatever the coefficients: rendering then sees the same points, and shows the same picture."""
    params = jax.jit(DeformationField(FIELD).init)(jax.random.key(0))['params']
    points = jax.random.uniform(jax.random.key(1), (3, 50, 3), minval=-0.5, maxval=0.5)

    @jax.jit
    def moved(shape, expression):
        given = condition(params, FIELD, shape, expression)
        return backward(params, FIELD, given, 1.0)(points), offsets(params, FIELD, given, points, 1.0)[1]

    for size in (0.0, 1.0, 30.0):
        keys = jax.random.split(jax.random.key(2), 2)
        place, weight = moved(*(size * jax.random.normal(k, (3, n)) for k, n in zip(keys, (80, 64), strict=True)))
        np.testing.assert_array_equal(place, points)
        assert ((np.asarray(weight) >= 0) & (np.asarray(weight) <= 1)).all(), 'rounded: it may reach its bounds'
        assert size > 1 or ((np.asarray(weight) > 0) & (np.asarray(weight) < 1)).all()


def test_a_fit_of_compensation_leaves_all_else():
    first = fit.first_params(VARIABLES, 'compensation')
    assert jax.tree.structure(first) == jax.tree.structure(VARIABLES['params']['compensation'])
    own = fit._own_variables(VARIABLES, CONFIG, jax.tree.map(lambda x: x + 1, first), 'compensation')
    for collection, tree in VARIABLES.items():
        for name, values in tree.items():
            if (collection, name) != ('params', 'compensation'):
                jax.tree.map(np.testing.assert_array_equal, own[collection][name], values)
    # A fit of the generator leaves its mapping network, too.
    moved = jax.tree.map(lambda x: x + 1, fit.first_params(VARIABLES, 'generator'))
    own = fit._own_variables(VARIABLES, CONFIG, moved, 'generator')
    before, after = (v['params']['generator']['backbone']['mapping'] for v in (VARIABLES, own))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    for name in ('encoder', 'deformation', 'compensation'):
        jax.tree.map(np.testing.assert_array_equal, own['params'][name], VARIABLES['params'][name])


@pytest.mark.slow
@pytest.mark.parametrize('start', ['mean', 'encoder'])
def test_a_search_starts_where_it_should(start, monkeypatch):
    seen = lambda loss, first, spread, key, config: Pivot(first, jnp.zeros(1), {})
    monkeypatch.setattr(fit.tuning, 'find_pivot', seen)
    config = CONFIG.replace(search__start=start)
    images = jnp.stack([jnp.asarray(portrait(i).image)[None] for i in range(2)])
    problems = fit.Problem(images, None, None, None, None)
    keys = jax.random.split(jax.random.key(0), 2)
    found, rows = jax.jit(lambda v, p, k: fit._search(v, None, p, k, config))(VARIABLES, problems, keys)
    if start == 'encoder':
        close(found.code, nofa.style_rows(VARIABLES, CONFIG, images[:, 0]).mean(1), atol=1e-5, what='first code')
    else:
        np.testing.assert_array_equal(found.code[0], found.code[1])
    np.testing.assert_array_equal(rows, np.broadcast_to(np.asarray(found.code)[:, None, None], rows.shape))


def test_the_list_of_invariants_names_tests():
    text = (ROOT / 'docs/nofa.md').read_text().split('## Invariants')[1].split('\n## ')[0]
    found = re.findall(r'`(\w+\.py)`: `(\w+)`', text)
    assert len(set(re.findall(r'^\| (\d+) ', text, re.MULTILINE))) == 12
    for file, test in found:
        path = next(p for p in (ROOT / 'tests' / file, ROOT / 'tests/parity' / file) if p.is_file())
        names = {n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)}
        assert test in names, f'{file}: {test}'
