"""The benchmark runs every stage and writes what it promises."""

import dataclasses
import json
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from avatar_jax.bench import stages
from avatar_jax.bench.everything import plan, run_everything, tables
from avatar_jax.bench.profile import described, heaviest
from avatar_jax.bench.stages import run_benchmark
from avatar_jax.cli import main
from avatar_jax.errors import UserError
from avatar_jax.methods.base import Bench, method, methods
from avatar_jax.models.triplane import GeneratorConfig
from avatar_jax.train.costs import ProgramMemory, count, products

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


@pytest.mark.slow
def test_memory_of_inverting_people(tmp_path, monkeypatch, capsys):
    """Six people need about three times as much as two; nothing is executed."""
    monkeypatch.setattr(stages, '_measure', None)
    how = ['bench', '--memory', '--preset', 'tiny', '--stages', 'people', '--batch-sizes', '2', '6']
    assert main([*how, '--out', str(tmp_path / 'm.json')]) == 0
    two, six = json.loads((tmp_path / 'm.json').read_text())['results']
    assert two['preset'] == 'tiny' and two['stage'] == 'people' and six['batch'] == 6
    assert 2 * two['temp_bytes'] < six['temp_bytes'] < 4 * two['temp_bytes']
    assert two['peak_bytes'] >= two['temp_bytes'] + two['argument_bytes'] > two['argument_bytes'] > 0
    assert 'people           batch 6' in capsys.readouterr().out


def test_what_a_program_holds_is_said_in_words():
    assert ProgramMemory(2**20, 2**31, 2**20).text() == '2.0 GiB (arguments 1 MiB, temporaries 2.0 GiB)'


def test_profile_says_where_the_time_goes(tmp_path):
    lines = []
    file = tmp_path / 'bench.json'
    run_benchmark(BENCH, GeneratorConfig.tiny(), ['backbone'], (1,), 1, file, lines.append, profiled=True)
    (measured,) = json.loads(file.read_text())['results']
    found = measured['profile']
    assert found['flops'] == measured['flops'] > 0 and found['bytes'] == measured['bytes'] > 0
    assert found['flops_per_s'] == pytest.approx(found['flops'] / measured['min_s'])
    assert found['compute_share'] == pytest.approx(found['flops_per_s'] / found['peak']['flops'])
    seconds = [o['seconds'] for o in found['operations']]
    assert 3 <= len(seconds) <= 10 and seconds == sorted(seconds, reverse=True) and seconds[-1] > 0
    assert all(o['shape'] and o['kind'] and o['calls'] == 1 for o in found['operations'])
    assert any('conv' in o['origin'] for o in found['operations'])
    assert 'GFLOP/s' in lines[-1] and len(lines[-1].splitlines()) == 1 + len(seconds)


def test_operations_are_read_from_a_compiled_program():
    text = """
      %fusion.3 = f32[2,8]{1,0} fusion(%a), kind=kLoop, metadata={op_name="jit(f)/jit(main)/net/conv/add" id=7}
      %while.1 = (s32[], f32[2,8]{1,0}) while(%t), condition=%c, body=%b
      ROOT %dot.5 = f32[2,2]{1,0} dot(%fusion.3, %b)
    """
    known = described(text)
    assert known == {
        'fusion.3': ('fusion', 'f32[2,8]', 'net/conv/add'),
        'while.1': ('while', '(s32[], f32[2,8])', ''),
        'dot.5': ('dot', 'f32[2,2]', ''),
    }
    seen = {'fusion.3': (4.0, 0.25), 'while.1': (1.0, 9.0), 'dot.5': (1.0, 0.75), 'unknown.1': (2.0, 0.0)}
    rows = heaviest(seen, known, 2)
    assert [(o.name, o.calls, o.share) for o in rows] == [('dot.5', 1.0, 0.75), ('fusion.3', 4.0, 0.25)]


def test_products_of_loops_count_in_full():
    import jax
    import jax.numpy as jnp

    def program(x, w):
        y, _ = jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=5)
        return jax.lax.conv_general_dilated(y[None, None], w[None, None], (1, 1), 'SAME')

    jaxpr = jax.make_jaxpr(program)(jnp.ones((4, 4)), jnp.ones((4, 4)))
    found = list(products(jaxpr))
    assert [(p.times, p.flops, p.text) for p in found] == [
        (5, 2 * 4**3, 'product of 4x4 and 4x4'),
        (1, 2 * 16 * 16, 'convolution of 1x1x4x4 and 1x1x4x4'),
    ]
    assert found[1].function(*(jnp.ones(s) for s in found[1].shapes)).shape == (1, 1, 4, 4)
    assert sum(p.flops * p.times for p in found) == count(jaxpr).flops


def small(name, factor):
    """A method whose one stage is a matrix product, in two precisions."""

    def build(config, batch):
        x = jnp.full((batch, 64), 1 / 3, config.name)

        def stage(which):
            assert which == name
            return (lambda a: jnp.float32(factor) * (a @ jnp.ones((64, 64), config.name)).astype(jnp.float32)), (x,), ()

        return SimpleNamespace(stage=stage)

    bench = Bench(('heads', 'full'), (name,), lambda preset, dtype, chunk: Kind(dtype or 'float32'), build)
    return SimpleNamespace(name=name, bench=bench)


@dataclass(frozen=True)
class Kind:
    name: str


def test_everything_within_a_time(tmp_path, monkeypatch):
    owners, lines = [small('a', 1), small('b', 2), SimpleNamespace(name='c', bench=None)], []
    found = run_everything(tmp_path, 60, 1, owners, lines.append)
    assert [(r['method'], r['stage']) for r in found['results']] == [('a', 'a'), ('b', 'b')]
    assert [e['relative_error'] for e in found['errors']] == pytest.approx([2**-9] * 2, abs=2**-9) and not found[
        'left_out'
    ]
    text = (tmp_path / 'tables.md').read_text()
    assert '## a, heads' in text and '| b, heads | b |' in text and 'H200' in text and len(lines) == 5
    assert json.loads((tmp_path / 'results.json').read_text())['results'][0]['min_s'] > 0
    # On an accelerator also the paper's size, and several frames at once.
    assert [i.text for i in plan(owners[:1], True)] == [
        'a heads a batch 1',
        'a full a batch 1',
        'a heads frame batch 8',
        'a full frame batch 8',
        'a heads a bfloat16 error',
    ]
    assert 'Left out for want of time: b heads b batch 1' in tables({**found, 'left_out': ['b heads b batch 1']})
    late = run_everything(tmp_path, 1e-9, 1, owners)
    assert not late['results'] and len(late['left_out']) == 4


def test_everything_goes_on_after_a_stage_that_fails(tmp_path):
    def build(config, batch):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory\nand more')

    broken = small('a', 1)
    broken.bench = dataclasses.replace(broken.bench, build=build, config=lambda *options: Kind('float32'))
    found = run_everything(tmp_path, 60, 1, [broken, small('b', 2)])
    assert [r['method'] for r in found['results']] == ['b']
    assert found['failed'][0] == 'a heads a batch 1: RESOURCE_EXHAUSTED: out of memory'
    assert 'Failed: a heads a batch 1: RESOURCE' in (tmp_path / 'tables.md').read_text()
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='file'):
        run_everything(tmp_path / 'file', 60, 1, [])


def test_everything_covers_all_methods():
    items = plan(list(methods()), False)
    assert items[0].method == 'otavatar'
    sizes = {(m.bench.config, s) for m in methods() if m.bench is not None for s in m.bench.stages}
    assert len([i for i in items if not i.error]) == len(sizes)
    assert {i.method for i in items if i.error} == {'otavatar', 'hfagp', 'nofa'}


def test_everything_needs_a_folder(capsys):
    for extra in ([], ['--out', 'x', '--stages', 'frame'], ['--out', 'x', '--budget', 'soon']):
        assert main(['bench', '--everything', *extra]) == 2
        assert capsys.readouterr().err.startswith('avatar-jax: error: --')


@pytest.mark.parametrize(
    'options',
    [
        ['--dtype', 'bfloat16', '--everything', '--out', 'x'],
        ['--ray-chunk', '8', '--everything', '--out', 'x'],
        ['--batch-sizes', '2', '--everything', '--out', 'x'],
        ['--method', 'nofa', '--everything', '--out', 'x'],
        ['--budget', '1m'],
        ['--profile', '--train'],
        ['--method', 'gpavatar', '--train'],
        ['--preset', 'tiny', '--train', '--memory'],
        ['--stages', 'frame', '--train'],
        ['--batch-sizes', '2', '--train'],
        ['--dtype', 'bfloat16', '--train'],
        ['--ray-chunk', '8', '--train'],
        ['--config', 'configs/otavatar_heads.py'],
        ['--devices', '2'],
        ['--rows', '2'],
        ['--parallel', 'sharded'],
        ['--count-only'],
    ],
)
def test_options_that_would_do_nothing_are_refused(options, capsys):
    assert main(['bench', *options]) == 2
    assert capsys.readouterr().err.startswith(f'avatar-jax: error: {options[0]}: ')


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
