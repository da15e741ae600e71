"""NOFA's tables and benchmark: every variant has configurations, avatars are built in several ways, stages add up."""

import dataclasses

import jax
import numpy as np
import pytest

from avatar_jax.bench.stages import comparisons
from avatar_jax.eval.estimators import Estimators
from avatar_jax.eval.portraits import built_scores
from avatar_jax.methods.base import method
from avatar_jax.methods.nofa.config import ModelConfig
from avatar_jax.train.costs import count
from avatar_jax.types import Avatar, Frames
from launch.config_args import load_run


@pytest.mark.parametrize('name', ['nofa3', 'nofa4', 'nofa5'])
def test_every_variant_can_be_trained(name):
    table = method('nofa').tables[name]
    for variant in table.variants:
        for size in table.sizes:
            runs = table.run(variant, size, 2, 7, 'pictures')
            configs = [load_run(spec, overrides)[1] for spec, overrides in runs]
            for config in configs:
                assert config.seed == 2 and config.data.folder == 'pictures'
                assert config.model.settings.train.stage(config.stage).iterations == 7
                assert config.model.img_resolution == (32 if size == 'tiny' else 128)
            assert configs[0].stage == 'general' and all(c.init for c in configs[1:])
    for row in table.rows.values():
        assert row.key in table.builds and set(row.paper) <= set(table.scores)


def test_the_variants_are_the_papers():
    three, five = (method('nofa').tables[name] for name in ('nofa3', 'nofa5'))
    stages = {v: [load_run(*r)[1] for r in three.run(v, 'tiny', 0, None, 'x')] for v in three.variants}
    assert [c.stage for c in stages['full']] == ['general', 'compensation']
    assert not stages['without_compensation'][-1].model.settings.compensation.use
    fields = {v: load_run(*five.run(v, 'tiny', 0, None, 'x')[0])[1].model.settings.deformation for v in five.variants}
    assert not fields['without_wnet'].use_wnet and not fields['without_identity'].use_identity
    assert fields['general'].use_wnet and fields['general'].use_identity


def test_avatars_are_built_in_several_ways(monkeypatch):
    """Each way has its scores, and the portrait comes with all that is known of it."""
    seen = []

    class Stub:
        def build(self, portraits, tune):
            (portrait,) = portraits
            assert portrait.shape.shape == (80,) and portrait.expression.shape == (64,)
            seen.append(tune)
            return type('Built', (), {'avatar': Avatar({'tune': tune})})

        def frames(self, avatar, windows, labels):
            error = {'none': 0.2, 'generator': 0.1}[avatar.identity['tune']]
            return Frames(np.full((1, 16, 16, 3), error, np.float32), None, None, None)

    def sets(k):
        marks = np.tile(np.float32([[3, 3]]), (2, 68, 1))
        marks[:, 50] = [9, 8]
        return {
            'images': np.zeros((2, 16, 16, 3), np.float32),
            'masks': np.full((2, 16, 16), 255, np.uint8),
            'windows': np.zeros((2, 27, 70), np.float32),
            'labels': np.tile(np.eye(5, dtype=np.float32).reshape(-1), (2, 1)),
            'landmarks': marks,
            'identity': np.zeros(192, np.float32),
        }

    monkeypatch.setattr('avatar_jax.eval.portraits.default_bank', lambda side: None)
    monkeypatch.setattr('avatar_jax.eval.portraits.from_bank', lambda bank: Estimators())
    found = built_scores(Stub(), sets, 2, {'forward': {'tune': 'none'}, 'all': {'tune': 'generator'}})
    assert seen == ['none', 'generator'] * 2
    np.testing.assert_allclose(found['forward']['psnr'], 20 * np.log10(2 / 0.2), rtol=1e-5)
    np.testing.assert_allclose(found['all']['mouth'], 20 * np.log10(2 / 0.1), rtol=1e-5)
    assert all(np.isnan(found['all'][name]) for name in ('aed', 'aucon', 'avd'))


@pytest.mark.slow
def test_stages_of_the_benchmark():
    """A frame is rendering and super-resolution."""
    bench = method('nofa').bench
    stages, costs = bench.build(bench.config('tiny', None, 512), 1), {}
    for name in bench.stages:
        function, arguments, donated = stages.stage(name)
        costs[name] = count(jax.make_jaxpr(function)(*arguments)).flops
        assert costs[name] > 0
        assert donated == ((0,) if name.startswith(('training', 'tuning')) else ())
    assert 0.97 < costs['frame'] / (costs['rendering'] + costs['superresolution']) < 1.03, costs
    assert 0 < costs['deformation'] < costs['rendering']
    assert 0.3 < costs['tuning_compensation'] / costs['tuning_generator'] < 2
    measured = [
        {'stage': n, 'batch': 2, 'min_s': s, 'flops': s * 10**9, 'temp_bytes': 2**20 * s, 'argument_bytes': 2**20}
        for n, s in zip(('tuning_compensation', 'tuning_generator'), (1, 3), strict=True)
    ]
    (line,) = comparisons(bench, measured)
    assert line == (
        'tuning_compensation against tuning_generator, batch 2: 0.33 of the time, 0.33 of the operations (1 and 3 '
        'GFLOP), 0.50 of the memory (2 and 4 MiB)'
    )
    both = dataclasses.replace(bench, compared=(('tuning_generator', 'tuning_compensation+tuning_generator'),))
    (line,) = comparisons(both, measured)
    assert '0.75 of the time, 0.75 of the operations (3 and 4 GFLOP), 1.00 of the memory' in line
    assert not comparisons(bench, measured[:1])
    assert stages.fit_config('generator').steps > 10**5, 'a state that goes on from call to call must not be at its end'
    assert bench.config('full', None, None).img_resolution == 512
    assert bench.config('heads', None, 64).generator.rendering.ray_chunk == 64
    assert isinstance(bench.config('tiny', None, None), ModelConfig)
