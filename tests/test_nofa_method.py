"""NOFA through the commands: two stages of training, invert with the fit, animate, on a few thousand parameters."""

import numpy as np
import pytest

from avatar_jax.cli import main
from avatar_jax.methods.base import training
from avatar_jax.methods.model import load_model
from launch.config_args import load_run


@pytest.mark.slow
def test_commands(tmp_path, capsys):
    from PIL import Image

    first, second = str(tmp_path / 'general'), str(tmp_path / 'compensation')
    # Steps of single rays are quicker to compile; those of whole pictures are in tests/test_nofa_train.py.
    few = ['--config.parallel=single', '--config.model.settings.train.rays=8', '--config.output.tensorboard=false']
    assert main(['train', '--config', 'configs/nofa_heads.py:tiny', *few, '--out', first]) == 0
    spec = ['--config', 'configs/nofa_heads.py:tiny,compensation', *few]
    assert main(['train', *spec, f'--config.init={first}/weights.safetensors', '--out', second]) == 0
    before, after = (load_model(f'{folder}/weights.safetensors').variables['params'] for folder in (first, second))
    for name in ('encoder', 'generator', 'deformation'):  # frozen parts stay bit-identical

        def same(a, b):
            if isinstance(a, dict):
                return all(same(a[k], b[k]) for k in a)
            return np.array_equal(a, b)

        assert same(before[name], after[name]), name
    assert not same(before['compensation'], after['compensation'])
    weights = ['--weights', f'{second}/weights.safetensors']
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / 'face.png')
    np.savetxt(tmp_path / 'marks.txt', np.random.default_rng(1).uniform(8, 24, (68, 2)))
    made = str(tmp_path / 'made')
    picture = ['--image', str(tmp_path / 'face.png'), '--aligned', '--landmarks', str(tmp_path / 'marks.txt')]
    assert main(['invert', *picture, '--out', made, '--fit-steps', '2', *weights]) == 0
    film = str(tmp_path / 'v.mp4')
    assert main(['animate', '--avatar', f'{made}/face', '--motion', 'speech:0:3', '--out', film, *weights]) == 0
    capsys.readouterr()
    assert main(['invert', *picture, '--out', made, '--tune', 'all', *weights]) == 2
    assert '--tune all: choose compensation or generator or none' in capsys.readouterr().err


def test_configs():
    for spec in ('nofa_heads', 'nofa_heads:tiny,compensation', 'nofa_celebvhq:teeth', 'nofa_heads:without_wnet'):
        owner, config = load_run(spec)
        assert owner is training('nofa') and config.method == 'nofa'
    assert load_run('nofa_celebvhq')[1].model.img_resolution == 512
    assert load_run('nofa_heads')[1].generator == 'heads128'
