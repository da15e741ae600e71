"""Perception networks, LPIPS channel weights, and the face regressor."""

import jax
import numpy as np
import pytest

from avatar_jax.convert.layout import to_torch, torch_shapes
from avatar_jax.convert.report import Report
from avatar_jax.errors import UserError
from avatar_jax.faces.recon import METHOD, ReconConfig, abstract_recon, load_recon
from avatar_jax.io.weights import load_weights
from avatar_jax.losses.perception import NETWORKS, PerceptionBank, abstract_variables
from avatar_jax.models.perception.lpips import CHECKSUM_LIN0, TAP_CHANNELS
from tests.convert import checkpoints as c
from tests.convert import writers as w
from tests.convert.known import convert, export, recognise
from tests.convert.test_convert_eg3d import same

PUBLIC = sorted(name for name, kind in NETWORKS.items() if not kind.stand_in and name != METHOD)  # beside the faces


@pytest.mark.slow
@pytest.mark.parametrize('name', PUBLIC)
def test_every_network_is_recognised(name, tmp_path):
    shapes = torch_shapes(abstract_variables(name))
    shapes |= {k.replace('running_mean', 'num_batches_tracked'): () for k in shapes if k.endswith('running_mean')}
    unused = {'classifier.0.weight': (3, 3)} if NETWORKS[name].unused else {}
    for start in ('', 'module.', 'state_dict/net.'):
        kind, source = recognise(c.abstract_file(tmp_path, shapes | unused, start))
        assert (kind.name, source.places) == (name, {'': start})
        report = Report(name)
        (plan,) = kind.plan(source, report)
        report.check('file')
        assert plan.method == f'perception/{name}'
        assert set(plan.flat) == {k for k in shapes if not k.endswith('num_batches_tracked')}
        assert set(report.unused) == {start + k for k in (shapes | unused) if k not in plan.flat}


def lin(net, total=None):
    rng = np.random.default_rng(2)
    flat = {
        f'lin{k}.model.1.weight': rng.random((1, n, 1, 1)).astype(np.float32) for k, n in enumerate(TAP_CHANNELS[net])
    }
    first = flat['lin0.model.1.weight']
    flat['lin0.model.1.weight'] = (first * ((total or CHECKSUM_LIN0[net]) / first.sum())).astype(np.float32)
    return flat


@pytest.mark.parametrize('net', sorted(TAP_CHANNELS))
def test_lpips_in_the_old_format(net, tmp_path):
    flat = lin(net)
    value = w.ordered({k: w.Tensor(w.Storage(v, location='cuda:0'), 0, v.shape) for k, v in flat.items()})
    done = convert(w.write(tmp_path, f'{net}.pth', w.stream(value)), tmp_path)
    assert done.kind == f'lpips_{net}'
    bank = PerceptionBank.load({f'lpips_{net}': tmp_path / f'lpips_{net}.safetensors'})
    for k, value in enumerate(bank.lin[net]):
        assert np.array_equal(value, flat[f'lin{k}.model.1.weight'].reshape(-1))


def test_lpips_of_the_first_version_is_refused(tmp_path):
    with pytest.raises(UserError, match='version 0.0'):
        convert(w.write(tmp_path, 'alex.pth', w.stream(c.tensors(lin('alex', 2.56589)))), tmp_path / 'out')


def test_alexnet_there_and_back(tmp_path):
    flat = c.numbers(torch_shapes(abstract_variables('alexnet')))
    flat['features.0.bias'] = flat['features.0.bias'].astype(np.float16)
    path = w.write(
        tmp_path, 'alexnet-00000000.pth', w.torch_zip(c.tensors(flat | {'classifier.1.bias': np.ones(3, np.float32)}))
    )
    done = convert(path, tmp_path)
    assert any('float16; it is kept as float32' in note for note in done.report.notes)
    assert any('so the file was changed' in note for note in done.report.notes)
    bank = PerceptionBank.load({'alexnet': tmp_path / 'alexnet.safetensors'})
    expected = {k: v.astype(np.float32) for k, v in flat.items()}
    same(to_torch(jax.tree.map(np.asarray, bank.weights['alexnet'])), expected)
    convert(export(tmp_path / 'alexnet.safetensors', tmp_path / 'exported'), tmp_path / 'again')
    before, after = (load_weights(folder / 'alexnet.safetensors') for folder in (tmp_path, tmp_path / 'again'))
    assert before.sha256 == after.sha256


def test_embeddings_without_weight_and_bias(tmp_path):
    shapes = torch_shapes(abstract_variables('irse50'))
    shapes = {k: s for k, s in shapes.items() if k not in ('output_layer.4.weight', 'output_layer.4.bias')}
    kind, source = recognise(c.abstract_file(tmp_path, shapes))
    report = Report(kind.name)
    (plan,) = kind.plan(source, report)
    report.check('file')
    assert (plan.flat['output_layer.4.weight'] == 1).all() and (plan.flat['output_layer.4.bias'] == 0).all()
    assert len(report.notes) == 2


def test_regressor(tmp_path):
    config = ReconConfig(4, (2, 2, 2, 2), (1, 1, 2, 1))
    flat = c.numbers(torch_shapes(abstract_recon(config)))
    value = {
        'net_recon': c.tensors(flat),
        'opt_00': {'state': {0: {'exp_avg': w.tensor(np.ones(2, np.float32))}}},
        'sched_00': {},
    }
    done = convert(w.write(tmp_path, 'epoch_20.pth', w.torch_zip(value)), tmp_path)
    assert 'training run' in done.report.unused['opt_00/state/0/exp_avg']
    variables, read = load_recon(tmp_path / 'deep3d_recon.safetensors')
    assert read == config
    same(to_torch(variables), flat)
    assert abstract_recon(ReconConfig())['params']['backbone']['conv1']['weight'].shape == (7, 7, 3, 64)


def test_foreign_and_ambiguous_files(tmp_path):
    with pytest.raises(UserError, match='holds nothing that is known; it has x'):
        convert(w.write(tmp_path, 'a.pth', w.torch_zip({'x': w.tensor(np.ones(3, np.float32))})), tmp_path / 'out')
    with pytest.raises(UserError, match='--as vgg91: unknown; did you mean vgg'):
        convert(tmp_path / 'missing.pth', tmp_path / 'out', kind='vgg91')
    both = {f'a.{k}': v for k, v in lin('alex').items()} | {f'b.{k}': v for k, v in lin('vgg').items()}
    path = w.write(tmp_path, 'b.pth', w.torch_zip(c.tensors(both)))
    with pytest.raises(UserError, match="lpips_alex at 'a.', lpips_vgg at 'b.'.*--as"):
        convert(path, tmp_path / 'out')
    done = convert(path, tmp_path / 'out', kind='lpips_vgg', allow=['a.*'])
    assert done.kind == 'lpips_vgg' and len(done.report.mapped) == 5
    with pytest.raises(UserError, match='nothing that looks like eg3d'):
        convert(path, tmp_path / 'out', kind='eg3d')
    cut = w.write(tmp_path, 'c.pth', path.read_bytes()[:-700])
    with pytest.raises(UserError) as error:
        convert(cut, tmp_path / 'new')
    assert '\n' not in str(error.value) and not (tmp_path / 'new').exists()
