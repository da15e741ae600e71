"""The benchmark runs every stage and writes what it promises."""

import json

import pytest

from avatar_jax.errors import UserError
from avatar_jax.models.triplane import GeneratorConfig
from launch import benchmark


@pytest.mark.slow
def test_every_stage_is_measured(tmp_path):
    lines = []
    config = GeneratorConfig.tiny()
    benchmark.run_benchmark(config, benchmark.STAGES, (2,), 2, tmp_path / 'sub' / 'bench.json', lines.append)
    result = json.loads((tmp_path / 'sub' / 'bench.json').read_text())
    assert [r['stage'] for r in result['results']] == list(benchmark.STAGES) and len(lines) == len(benchmark.STAGES)
    for r in result['results']:
        assert r['batch'] == 2 and len(r['times_s']) == 2 and 0 < r['min_s'] <= r['median_s'] and r['compile_s'] > 0
        assert r['temp_bytes'] >= 0 and r['argument_bytes'] > 0
    assert result['config']['img_resolution'] == config.img_resolution and result['machine']['devices']


def test_presets_and_mistakes():
    assert benchmark.preset('ffhq512-128').neural_rendering_resolution == 128
    assert benchmark.preset('ffhq512') == GeneratorConfig.ffhq512()
    with pytest.raises(UserError, match='--preset'):
        benchmark.preset('ffhq1024')
    with pytest.raises(UserError, match='--stages'):
        benchmark.run_benchmark(GeneratorConfig.tiny(), ['frames'])
    with pytest.raises(UserError, match='--repeats'):
        benchmark.run_benchmark(GeneratorConfig.tiny(), ['frame'], repeats=0)
