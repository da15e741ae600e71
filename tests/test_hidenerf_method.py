"""HiDe-NeRF through the commands: train, resume, invert, animate, on a few thousand parameters."""

from pathlib import Path

import jax
import numpy as np
import pytest

from avatar_jax.cli import main
from avatar_jax.methods.base import method, training
from avatar_jax.methods.hidenerf.build import cut_off
from avatar_jax.methods.hidenerf.config import ModelConfig
from avatar_jax.methods.model import load_model
from avatar_jax.types import Camera, Portrait
from launch.config_args import load_run
from tests.runs import copied_as_if_killed, shared_programs


@pytest.mark.slow
def test_commands(tmp_path, capsys):
    from PIL import Image

    spec = ['--config', 'configs/hidenerf_heads.py:tiny', '--config.parallel=single']
    out = [str(tmp_path / name) for name in ('whole', 'parts')]
    with shared_programs():
        with copied_as_if_killed(Path(out[0]), Path(out[1]), 3):
            assert main(['train', *spec, '--out', out[0]]) == 0
        assert not Path(out[1], 'weights.safetensors').exists()
        assert main(['train', *spec, '--out', out[1], '--resume']) == 0
    models = [load_model(f'{folder}/weights.safetensors') for folder in out]
    for a, b in zip(*(jax.tree.leaves(m.variables['params']) for m in models), strict=True):
        np.testing.assert_array_equal(a, b)
    pixels = np.full((32, 32, 4), 255, np.uint8)
    pixels[8:24, 8:24, :3] = np.random.default_rng(0).integers(0, 255, (16, 16, 3))
    pixels[:8, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / 'face.png')
    weights = ['--weights', f'{out[0]}/weights.safetensors']
    made = str(tmp_path / 'made')
    capsys.readouterr()
    given = ['--image', str(tmp_path / 'face.png'), '--aligned', '--jitter', '--out', made]
    assert main(['invert', *given, *weights]) == 0
    assert '--jitter: HiDe-NeRF draws nothing at random here; ' in capsys.readouterr().err
    film = str(tmp_path / 'v.mp4')
    assert main(['animate', '--avatar', f'{made}/face', '--motion', 'speech:0:3', '--out', film, *weights]) == 0
    capsys.readouterr()
    assert main(['invert', '--method', 'hidenerf', '--image', 'x.png', '--out', made]) == 2
    assert 'x.png' in capsys.readouterr().err


def test_configs():
    for spec in ('hidenerf_heads', 'hidenerf_heads:tiny', 'hidenerf_heads:small,no_secc', 'hidenerf_voxceleb:tiny'):
        owner, config = load_run(spec)
        assert owner is training('hidenerf') and config.method == 'hidenerf'
    assert load_run('hidenerf_voxceleb')[1].model == ModelConfig.paper()
    assert load_run('hidenerf_heads:small,no_secc')[1].model.deformation.pose_coupled
    table = method('hidenerf').tables['hidenerf5']
    for variant in table.variants:
        load_run(*table.run(variant, 'tiny', 1, 5, '/tmp'))


def test_table_5_says_what_agrees_with_the_paper():
    from avatar_jax.eval.ablation import make_report, render

    table = method('hidenerf').tables['hidenerf5']
    scores = {name: [dict(row.paper) | {'psnr': 20.0}] * 2 for name, row in table.rows.items()}
    text = render(table, make_report(table, scores, {}))
    assert 'full the same as without multi-scale: PRMSE as in the paper' in text
    assert 'without SECC better than without camera-to-world: PRMSE as in the paper\n' in text + '\n'
    assert 'the other way' not in text and 'differs by more' not in text
    for one in scores['without multi-scale']:
        one |= {'prmse': 4.0, 'aucon': 0.917}
    text = render(table, make_report(table, scores, {}))
    assert 'full the same as without multi-scale: PRMSE differs by more than the spread of the seeds' in text
    assert 'full better than without multi-scale: CSIM as in the paper, AUCON no difference, AVD as in' in text
    assert 'without multi-scale better than without camera-to-world: PRMSE the other way' in text


@pytest.mark.parametrize(('name', 'table'), [('hidenerf', 'hidenerf5'), ('gpavatar', 'gpavatar3')])
def test_tables_that_are_trained_in_fewer_steps_keep_their_course(name, table):
    run = method(name).tables[table].run
    for size in ('tiny', 'full'):
        whole, half = (load_run(*run('full', size, 1, steps, '/tmp'))[1].model for steps in (None, 500))
        whole, half = (c.train if name == 'hidenerf' else c.settings.train for c in (whole, half))
        assert half == whole.of_length(500) and half.iterations == 500 and whole == whole.of_length(whole.iterations)
        for field in ('milestones', 'refine_from', 'gan_from', 'ray_iterations'):
            wanted = np.asarray(getattr(whole, field, 0)) * 500 / whole.iterations
            np.testing.assert_allclose(getattr(half, field, 0), wanted, atol=0.5)
        assert 0 < half.milestones[0] < half.milestones[-1] < 500


def test_heads_that_rays_cut_off_are_said():
    config = ModelConfig.heads()

    def at(distance):
        pose = np.diag([1.0, -1, -1, 1]).astype(np.float32)
        pose[2, 3] = config.volume.pivot[2] + distance
        return cut_off(config, Portrait(image=np.zeros((8, 8, 3)), camera=Camera(pose, np.eye(3, dtype=np.float32))))

    assert at(2.7) == ''
    assert at(2.5).startswith('its camera is 2.50 from the head, and rays of these weights run from 2.4 to 3.12: ')
    assert '3.05' in at(3.05)
