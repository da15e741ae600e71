"""Stages of ``bench`` can be traced at full size; nothing is computed or allocated.

Every stage of a method at one size (its paper's, else the default), and one, a frame where there is one, at the others:
presets differ in sizes only.
"""

import jax
import jax.numpy as jnp
import pytest

from avatar_jax.methods.base import methods


def cases():
    """(method, preset, stages); stages that another method has, too, of the same presets, once."""
    known = set()
    for owner in methods():
        if owner.bench is None:
            continue
        of, presets = getattr(owner.bench.config, 'place', owner.name), owner.bench.presets
        stages = [s for s in owner.bench.stages if (of, s) not in known]
        known |= {(of, s) for s in stages}
        paper = 'full' if 'full' in presets else presets[0]
        for preset in presets:
            some = stages if preset == paper else [s for s in stages if s == 'frame'] or stages[:1]
            yield pytest.param(owner.bench, preset, some, id=f'{owner.name}-{preset}')


@pytest.mark.slow
@pytest.mark.parametrize(('bench', 'preset', 'stages'), list(cases()))
def test_every_stage_can_be_traced(bench, preset, stages):
    def whole():
        made, results = bench.build(bench.config(preset, None, None), 1), {}
        for stage in stages:
            function, arguments, overwritten = made.stage(stage)
            results[stage] = found = function(*arguments)
            for place in overwritten:  # comes back at the same place, for the next call
                assert shapes(found[place]) == shapes(arguments[place]), f'{stage}: argument {place}'
        return results

    found = jax.eval_shape(whole)
    assert set(found) == set(stages) and all(jax.tree.leaves(result) for result in found.values())


def shapes(tree):
    """Structure, shapes and types."""
    return jax.tree.structure(tree), [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(tree)]
