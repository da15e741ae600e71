"""HFA-GP's checkpoints: every entry in, every entry back, and what a wrong one gets."""

import jax
import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.io.weights import load_weights
from avatar_jax.methods.hfagp import release
from avatar_jax.methods.hfagp.config import DRIVERS, ModelConfig
from avatar_jax.methods.hfagp.model import abstract, load_model
from tests.convert import writers as w
from tests.convert.known import convert, export


def sections_of(driver, seed=0):
    """State dicts of a small checkpoint with the published encoders' forms."""
    config = ModelConfig.tiny('release', driver)
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), abstract(config))
    return config, variables, release.state_dicts(variables, config)


def written(folder, sections, **more):
    folder.mkdir(exist_ok=True)
    return w.write(folder, '004999.pt', w.torch_zip({**sections, **more}))


@pytest.mark.slow
@pytest.mark.parametrize('driver', DRIVERS)
def test_import_export_and_import_again(tmp_path, driver, monkeypatch):
    config, variables, sections = sections_of(driver)
    # The tiny generator is of no published class: its form is told in the place of the shapes.
    monkeypatch.setattr('avatar_jax.methods.hfagp.foreign.from_shapes', lambda *_: config.generator)
    sections['gen']['bases_2'], sections['gen']['delta_2'] = (sections['gen'][k] + 1 for k in ('bases', 'delta'))
    done = convert(written(tmp_path / 'in', sections), tmp_path / 'a')
    assert [p.name for p in done.files] == ['hfagp.safetensors']
    path = tmp_path / 'a' / 'hfagp.safetensors'
    jax.tree.map(np.testing.assert_array_equal, dict(load_weights(path).variables), variables)
    assert load_model(path)[1].settings.drivers == (driver,)
    back = export(path, tmp_path / 'b')
    convert(back, tmp_path / 'c')
    again = tmp_path / 'c' / 'hfagp.safetensors'
    assert load_weights(again).sha256 == load_weights(path).sha256
    # What does not fit is told by its name.
    del sections['gen']['delta'], sections['gen']['bases_2']
    sections['gen']['encoder_more'] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match='delta'):
        convert(written(tmp_path / 'in2', sections), tmp_path / 'd')
