"""The benchmark runs every stage and writes what it promises."""

import json

import pytest

from avatar_jax.bench.stages import run_benchmark
from avatar_jax.cli import main
from avatar_jax.errors import UserError
from avatar_jax.methods.base import method
from avatar_jax.models.triplane import GeneratorConfig

BENCH = method('eg3d').bench


@pytest.mark.slow
def test_every_stage_is_measured(tmp_path):
    lines = []
    config = GeneratorConfig.tiny()
    run_benchmark(BENCH, config, None, (2,), 2, tmp_path / 'sub' / 'bench.json', lines.append)
    result = json.loads((tmp_path / 'sub' / 'bench.json').read_text())
    assert [r['stage'] for r in result['results']] == list(BENCH.stages) and len(lines) == len(BENCH.stages)
    for r in result['results']:
        assert r['batch'] == 2 and len(r['times_s']) == 2 and 0 < r['min_s'] <= r['median_s'] and r['compile_s'] > 0
        assert r['temp_bytes'] >= 0 and r['argument_bytes'] > 0
    assert result['config']['img_resolution'] == config.img_resolution and result['machine']['devices']


def test_presets_and_mistakes(capsys):
    assert BENCH.config('ffhq512-128', None, None).neural_rendering_resolution == 128
    assert BENCH.config('ffhq512', None, None) == GeneratorConfig.ffhq512()
    assert BENCH.config('tiny', 'bfloat16', 7).rendering.ray_chunk == 7
    assert main(['bench', '--preset', 'ffhq1024']) == 2
    assert '--preset ffhq1024: otavatar has heads128, ffhq512' in capsys.readouterr().err
    with pytest.raises(UserError, match='--stages'):
        run_benchmark(BENCH, GeneratorConfig.tiny(), ['frames'])
    with pytest.raises(UserError, match='--repeats'):
        run_benchmark(BENCH, GeneratorConfig.tiny(), ['frame'], repeats=0)
