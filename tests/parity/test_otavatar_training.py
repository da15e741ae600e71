"""Optimizers and decoupling-by-inverting against recorded trajectories, in double and in single precision.

The networks are the toy that the reference file describes; the loop, the optimizers, the schedule and the clipping are
those that train and invert the real model.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.inversion.decoupling import DecouplingConfig, Objective, Optimizers, decoupling_iteration
from avatar_jax.inversion.invert import StageConfig, Transforms, run_stage
from avatar_jax.train.optimizers import OptimizerConfig, make_optimizer
from avatar_jax.train.state import Group, TrainState
from tests.comparison import close, with_moved, within_spread
from tests.parity.golden import handles

PRECISIONS = pytest.mark.parametrize('precision', ['float64', 'float32'])


@pytest.fixture
def dtype(precision):
    """Runs the test in this precision."""
    with jax.enable_x64(precision == 'float64'):
        yield jnp.dtype(precision)


@PRECISIONS
@handles('otavatar', 'optimizers')
def test_optimizers(golden, dtype):
    for name, settings in golden.config['config'].items():
        tx = make_optimizer(
            OptimizerConfig(
                settings['type'],
                settings['lr'],
                settings.get('adam_beta1', 0.9),
                settings.get('adam_beta2', 0.999),
                settings.get('adam_eps', 1e-8),
                settings.get('weight_decay', 0),
            )
        )
        x = jnp.asarray(golden.inp[f'{name}.init'], dtype)

        def step(carry, grad, tx=tx):
            x, state = carry
            update, state = tx.update(grad, state, x)
            return (x + update, state), x + update

        _, path = jax.lax.scan(step, (x, tx.init(x)), jnp.asarray(golden.inp[f'{name}.grads'], dtype))
        expected = golden.out[f'{name}.trajectory']
        close(path, expected, atol=1e-10 if dtype == 'float64' else 2e-6, what=name)
    golden.check_all_used()


def parse_optimizer(text: str) -> OptimizerConfig:
    """'AdamW lr 0.001 betas (0.5,0.999) weight_decay 1, persistent state, clip 1'."""

    def number(pattern, otherwise):
        found = re.search(pattern, text)
        return float(found.group(1)) if found else otherwise

    betas = re.search(r'betas \(([\d.e-]+),\s*([\d.e-]+)\)', text)
    return OptimizerConfig(
        re.match(r'\w+', text).group(0).lower(),
        number(r'lr ([\d.e-]+)', 1e-3),
        float(betas[1]),
        float(betas[2]),
        number(r'eps ([\d.e-]+)', 1e-8),
        number(r'weight_decay ([\d.e-]+)', 0.0),
    )


def smooth_l1(prediction, target):
    error = jnp.abs(prediction - target)
    return jnp.mean(jnp.where(error < 1, 0.5 * error**2, error - 0.5))


class Toy:
    """The toy networks; sizes from the arrays."""

    def __init__(self, golden, dtype):
        params = {k: jnp.asarray(v, dtype) for k, v in golden.param.items()}
        self.w_avg = params.pop('w_avg')
        self.controller = {k: params[k] for k in ('A', 'D')}
        self.generator = {k: v for k, v in params.items() if k not in ('A', 'D')}
        if 'unused' not in self.generator:
            sizes = {k: v.shape for k, v in golden.out.items() if k.endswith('G.unused')}
            self.generator['unused'] = jnp.ones(next(iter(sizes.values()), (2,)), dtype)
        self.rows, _, _ = self.generator['Phi'].shape
        self.raw_size = round((self.generator['U'].shape[1] / 3) ** 0.5)
        self.sr_size = round((self.generator['V'].shape[1] / 3) ** 0.5)

    def motion(self, params, x):
        """Motion windows [..., p] -> codes [..., K, d]."""
        alpha = (x @ params['A']).reshape(*x.shape[:-1], self.rows, params['D'].shape[1])
        return alpha @ params['D'].T

    def render(self, params, ws, label, bias):
        """ws [B, K, d], label [B, 25], bias [B, 18] -> raw [B,3,r,r], sr [B,3,R,R], planes [B,P]."""
        k_flat = label[:, 16:] * (1 + jnp.tanh(bias[:, :9])) + bias[:, 9:]
        label = jnp.concatenate([label[:, :16], k_flat], 1)
        planes = jnp.einsum('bkd,kdp->bp', jnp.tanh(ws), params['Phi'])
        zoom = 1 + 0.1 * (label[:, 16] + label[:, 20] - 8) + 0.2 * (label[:, 18] + label[:, 21] - 1)
        r, size = self.raw_size, self.sr_size
        raw = ((planes * zoom[:, None]) @ params['U']).reshape(-1, 3, r, r)
        low = raw + 0.5 * jnp.tanh(raw)
        high = jnp.repeat(jnp.repeat(low, size // r, 2), size // r, 3)
        return raw, high + (ws[:, -1] @ params['V']).reshape(-1, 3, size, size), planes

    def image_loss(self, prediction, target):
        if target.shape != prediction.shape:
            n, f = prediction.shape[-1], target.shape[-1] // prediction.shape[-1]
            target = target.reshape(*target.shape[:2], n, f, n, f).mean((3, 5))
        half = prediction.shape[-1] // 2
        p, t = prediction.reshape(len(prediction), -1), target.reshape(len(target), -1)
        cosine = (p * t).sum(1) / jnp.sqrt((p * p).sum(1) * (t * t).sum(1))
        terms = {
            'percept': jnp.mean(jnp.sqrt((prediction - target) ** 2 + 0.01)),
            'local': jnp.mean((prediction - target)[..., :half, :half] ** 2),
            'pixel': smooth_l1(prediction, target),
            'id': jnp.mean(1 - cosine),
        }
        return terms['percept'] + 10 * terms['local'] + terms['pixel'] + terms['id'], terms

    def frame_loss(self, params, ws, label, bias, image, sr, regularise):
        ws = jnp.clip(ws, self.w_avg - 5, self.w_avg + 5)
        raw, high, planes = self.render(params, ws, label, bias)
        loss, terms = self.image_loss(raw, image)
        if sr:
            more, _ = self.image_loss(high, image)
            loss = loss + more
        if regularise:
            step = planes[:, 1:] - planes[:, :-1]
            loss = loss + jnp.mean(jax.nn.relu(-step)) + 0.25 * jnp.mean(jnp.abs(step))
        return loss, terms

    def objective(self):
        def loss(generator, regulariser, motion, w, bias, batch, keys, sr, frames):
            del regulariser, keys  # the toy's regularisers look at planes only; nothing is random
            total, terms = 0.0, {}
            for j in frames:
                one, found = self.frame_loss(
                    generator, w + motion[:, j], batch['conditions'][:, j], bias, batch['images'][:, j], sr, True
                )
                total = total + one
                terms = {k: terms.get(k, 0.0) + v for k, v in found.items()}
            return total, terms

        return Objective(lambda params, batch: self.motion(params, batch['semantics']), loss)


def record(codes, params):
    return {'w': codes.w, 'bias': codes.bias, 'A': params['A'], 'D': params['D']}


@pytest.mark.slow
@PRECISIONS
@handles('otavatar', 'toy_decoupling_by_inverting')
def test_decoupling_by_inverting(golden, dtype, precision):
    toy, cfg = Toy(golden, dtype), golden.config
    tolerance = 1e-9 if precision == 'float64' else 2e-3
    settings = {k: parse_optimizer(v) for k, v in cfg['optimisers'].items()}
    transforms = {k: make_optimizer(v) for k, v in settings.items()}
    optimizers = Optimizers(
        transforms['w'], transforms['intrinsics'], transforms['controller'], transforms['generator']
    )
    config = DecouplingConfig(
        identity_steps=cfg['iterations'] - cfg['warp_update_iters'],
        controller_steps=cfg['warp_update_iters'],
        sr_steps=cfg['sr_iters'],
        mode=cfg.get('asynchronous_update') or 'successively',
        ema_decay=cfg['ema'],
        controller_lr_scale=cfg['warp_lr_mult'] / cfg['iterations'],
    )
    state = TrainState.create(
        {
            'controller': Group.create(toy.controller, transforms['controller'], ema=True),
            'generator': Group.create(toy.generator, transforms['generator'], ema=True),
        }
    )
    iterations = sorted({int(m[1]) for k in golden.inp if (m := re.match(r'iter(\d+)\.', k))})

    def compare(actual, name):
        expected = golden.out[name]
        # In single precision, gradient norms of size 50 carry their rounding: relative there.
        close(actual, expected, atol=tolerance, rtol=tolerance if 'norm' in name else 0, what=name)

    @jax.jit
    def iterate(state, batch):
        return decoupling_iteration(
            state,
            batch,
            jax.random.key(0),
            objective=toy.objective(),
            config=config,
            optimizers=optimizers,
            w_avg=toy.w_avg,
            num_frames=batch['images'].shape[1],
            record=record,
        )

    for i in iterations:
        batch = {k: jnp.asarray(golden.inp[f'iter{i}.{k}'], dtype) for k in ('images', 'semantics', 'conditions')}
        state, metrics, _, records = iterate(state, batch)
        n, inner, refine = config.identity_steps, records['inner'], records['refine']
        compare(jnp.concatenate([metrics['inner/loss'], metrics['refine/loss']]), f'iter{i}.loss')
        compare(inner['w'][:n], f'iter{i}.w_after_step')
        compare(inner['bias'][:n], f'iter{i}.intri_after_step')
        for name in 'AD':
            compare(jnp.concatenate([inner[name][n:], refine[name]]), f'iter{i}.{name}_after_step')
        compare(metrics['identity/code_grad_norm'], f'iter{i}.clip_norm_w')
        norms = jnp.concatenate([metrics['controller/grad_norm'], metrics['refine/controller_grad_norm']])
        compare(norms, f'iter{i}.clip_norm_C')
        compare(metrics['refine/generator_grad_norm'], f'iter{i}.clip_norm_G')
        close([settings['controller'].lr, settings['generator'].lr], golden.out[f'iter{i}.lr'], rtol=1e-12, what='lr')
        for short, group in (('C', 'controller'), ('G', 'generator')):
            for name, value in state.groups[group].params.items():
                compare(value, f'iter{i}.{short}.{name}')
                compare(state.groups[group].ema[name], f'iter{i}.{short}_ema.{name}')

    # One-shot inversion with the averages: W, then W+.
    source = {k: jnp.asarray(golden.inp[f'infer.{k}'], dtype) for k in ('images', 'semantics', 'conditions')}
    averages = {k: g.ema for k, g in state.groups.items()}

    def invert(image, label, x, w_avg):
        motion = toy.motion(averages['controller'], x)

        def loss_fn(code, bias, key, sr):
            del key
            loss, terms = toy.frame_loss(
                averages['generator'], (code + motion)[None], label[None], bias[None], image[None], sr, False
            )
            return loss / len(source['images']), terms  # the reference's loss is the mean over its batch

        def keep(code, bias):
            return {'w': code, 'bias': bias}

        moves = Transforms(transforms['w'], transforms['intrinsics'])
        code = jnp.broadcast_to(w_avg, (toy.rows, w_avg.shape[0]))
        stage = StageConfig('w', cfg['iterations'], cfg['sr_iters'], return_previous=True)
        first = run_stage(loss_fn, code, jnp.zeros(18, dtype), jax.random.key(0), stage, moves, keep)
        stage = StageConfig('w+', cfg['iterations'], cfg['sr_iters'])
        return first, run_stage(loss_fn, first.code, first.bias, jax.random.key(0), stage, moves, keep)

    # A hundred steps along an absolute difference carry rounding far: in single precision the program's own spread
    # is the measure, in double precision every number is held.
    function = jax.jit(jax.vmap(invert, in_axes=(0, 0, 0, None)))
    arguments = source['images'], source['conditions'], source['semantics'], toy.w_avg
    both = with_moved(function, *arguments, draws=0 if precision == 'float64' else 8)

    def compare_found(get, name):
        if precision == 'float64':
            compare(get(both[0]), name)
        else:
            within_spread([np.asarray(get(result)) for result in both], golden.out[name], what=name)

    for k, name in enumerate(('W', 'Wplus')):
        compare_found(lambda r, k=k: r[k].curve.sum(0), f'infer.{name}.loss')
        steps = golden.out[f'infer.{name}.w_after_step'].shape[0]
        stored = np.round(np.linspace(0, cfg['iterations'] - 1, steps)).astype(int)  # all, or every so many
        if name == 'W':  # all rows are the one row of space W
            w = both[0][k].record['w']
            np.testing.assert_array_equal(w, jnp.broadcast_to(w[:, :, :1], w.shape))
        rows = slice(1) if name == 'W' else slice(None)

        def recorded(r, what, k=k, stored=stored):
            return r[k].record[what].swapaxes(0, 1)[stored]

        compare_found(
            lambda r, rows=rows, recorded=recorded: recorded(r, 'w')[:, :, rows], f'infer.{name}.w_after_step'
        )
        compare_found(lambda r, recorded=recorded: recorded(r, 'bias'), f'infer.{name}.intri_after_step')
        compare_found(lambda r, k=k: r[k].code, f'infer.{name}.returned_w')
        compare_found(lambda r, k=k: r[k].bias, f'infer.{name}.returned_intri')
    golden.check_all_used()
