"""The bounds that allow for kinks still find errors: each is planted in a real computation, and must be refused."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.losses.local import local_loss, local_target
from avatar_jax.models.perception.arcface import ResNetArcFace
from tests.comparison import close_but_for, with_moved, within_spread
from tests.parity import golden as g
from tests.parity.formula_weights import network
from tests.parity.slices import thinned


def reference(name: str):
    path = g.root() / 'otavatar' / f'{name}.npz'
    if not path.exists():
        pytest.skip(f'no {path}')
    return g.load(path)


def nhwc(x):
    return jnp.asarray(np.asarray(x).transpose(0, 2, 3, 1))


# ------------------------------------------------------------------------------- the network of the identity loss


@cache
def arcface():
    """Reference file, weights, and the gradient that ``test_arcface_full`` compares."""
    golden = reference('arcface_full')
    target = jnp.asarray(golden.inp['target'])

    def scalar(gray, variables):
        return jnp.mean(ResNetArcFace().apply(variables, gray) * target)

    gradient = jax.jit(jax.grad(scalar))

    def stored(gray, variables):
        return thinned(np.asarray(gradient(gray, variables)).transpose(0, 3, 1, 2), golden.grad['gray'])

    return golden, network('arcface18', golden), stored


def changed(tree: dict, path: str, change) -> dict:
    """A copy of nested dicts in which one leaf is changed."""
    head, _, rest = path.partition('/')
    return tree | {head: changed(tree[head], rest, change) if rest else change(np.asarray(tree[head]))}


ARCFACE = {
    'nothing': ('params/prelu/weight', lambda x: x),
    'a slope twice as large': ('params/layer2/0/prelu/weight', lambda x: 2 * x),
    'no bias': ('params/layer1/0/bn1/bias', lambda x: 0 * x),
    'no running mean': ('batch_stats/layer3/0/bn2/running_mean', lambda x: 0 * x),
    'one transposed kernel': ('params/layer3/1/conv1/weight', lambda x: x.swapaxes(0, 1).copy()),
    'one mirrored kernel': ('params/conv1/weight', lambda x: x[:, ::-1].copy()),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', ARCFACE)
def test_identity_network(name):
    golden, variables, gradient = arcface()
    wrong = changed(variables, *ARCFACE[name])
    results, expected = with_moved(gradient, nhwc(golden.inp['gray']), wrong), golden.grad['gray']
    if name == 'nothing':
        within_spread(results, expected)
        return
    with pytest.raises(AssertionError, match='times the allowed'):
        within_spread(results, expected)


@pytest.mark.slow
def test_identity_network_refuses_a_crop_one_pixel_aside():
    golden, variables, gradient = arcface()
    gray = np.roll(nhwc(golden.inp['gray']), 1, 2)
    with pytest.raises(AssertionError, match='times the allowed'):
        within_spread(with_moved(gradient, gray, variables), golden.grad['gray'])


# ------------------------------------------------------------------------------------------------- the local loss

LOCAL = {
    'nothing': lambda pred, target, marks: (pred, target, marks),
    'landmarks one pixel aside': lambda pred, target, marks: (pred, target, marks + np.float32([1, 0])),
    'prediction one pixel aside': lambda pred, target, marks: (np.roll(pred, 1, 1), target, marks),
    'sides exchanged': lambda pred, target, marks: (target, pred, marks),
    'brighter': lambda pred, target, marks: (pred + np.float32(0.01), target, marks),
}


@cache
def local_gradient():
    golden = reference('local_loss_64')
    stored = golden.config['output_sizes']
    sizes = {'mouth': stored['mouth'], 'left_eye': stored['eyes'], 'right_eye': stored['eyes']}

    def loss(pred, target, landmarks):
        return local_loss(pred, local_target(target, landmarks, False, sizes))

    return golden, jax.jit(jax.grad(loss))


@pytest.mark.parametrize('name', LOCAL)
def test_local_loss(name):
    golden, gradient = local_gradient()
    landmarks = golden.inp['keypoint'] * np.float32(golden.config['H'] / 512)
    arguments = nhwc(golden.inp['pred']), nhwc(golden.inp['target']), landmarks
    expected = golden.grad['pred_official']
    found = thinned(np.asarray(gradient(*LOCAL[name](*arguments))).transpose(0, 3, 1, 2), expected)
    bound = {'share': 1e-3, 'atol': 1e-5, 'most': 0.05}
    if name == 'nothing':
        close_but_for(found, expected, **bound)
        return
    with pytest.raises(AssertionError, match='over the bound'):
        close_but_for(found, expected, **bound)
