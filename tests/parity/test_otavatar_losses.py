"""Image losses, identity loss, regularisers and metrics of OTAvatar against reference numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.losses import density as regularisers
from avatar_jax.losses.identity import (
    FACE_SIZE,
    aligned_gray,
    cosine_distance,
    face_matrix,
    five_points,
    identity_loss,
    identity_target,
)
from avatar_jax.losses.local import REGIONS, local_loss, local_target, local_terms, region_boxes, region_mask
from avatar_jax.losses.perception import PerceptionBank
from avatar_jax.losses.perceptual import (
    TAPS,
    gram,
    multiscale_features,
    perceptual_layers,
    perceptual_target,
)
from avatar_jax.methods.otavatar.losses import LossConfig, image_terms, prepare_targets, total
from avatar_jax.methods.otavatar.release import video_bytes
from avatar_jax.models.decoder import decode
from avatar_jax.models.perception.arcface import ResNetArcFace
from avatar_jax.models.perception.lpips import lin_weights, lpips_layers
from avatar_jax.ops.grid_sample import sample_planes_mean
from avatar_jax.ops.image_metrics import psnr
from avatar_jax.ops.resize import resize
from avatar_jax.ops.warp import warp_affine
from tests.comparison import close, close_but_for, close_l2, with_moved, within_spread
from tests.parity.formula_weights import network
from tests.parity.golden import handles
from tests.parity.slices import index_of, thinned


def nhwc(x):
    return jnp.asarray(np.asarray(x).transpose(0, 2, 3, 1))


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


@pytest.mark.slow
@handles('otavatar', 'perceptual')
def test_perceptual(golden):
    variables = network('vgg19', golden)
    scales, weight = golden.config['num_scales'], golden.config['style_to_perceptual']
    taps = tuple(golden.config['layers'])
    pred, target = nhwc(golden.inp['pred']), nhwc(golden.inp['target'])
    mask = nhwc(golden.inp['mask']) if 'mask' in golden.inp else None

    def loss(pred, variables, target, mask):
        prepared = perceptual_target(variables, target, scales, mask=mask, taps=taps)
        content, style = perceptual_layers(variables, pred, prepared)
        return content.sum() + weight * style.sum(), (content, style)

    # On the CPU, gradients of convolutions reach full speed only inside a compiled program.
    (value, (content, style)), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(pred, variables, target, mask)
    close(value, golden.out['loss'], rtol=1e-5, what='loss')
    close(content, golden.out['per_layer_l1'], rtol=1e-4, atol=1e-7, what='per layer')
    close(style[0], golden.out['gram_l1'], rtol=1e-4, atol=1e-9, what='Gram')
    grad = nchw(grad)
    close_l2(thinned(grad, golden.grad['pred']), golden.grad['pred'], 1e-2, 'gradient')
    stored = [k for k in golden.out if k.startswith('feat_')]
    if stored:
        features = multiscale_features(variables, pred, 1, taps=taps)[0]
        for name in stored:
            tap = name.removeprefix('feat_')
            value = nchw(features[tap])[index_of(golden.config['feature_slices'][tap])]
            close(value, golden.out[name], scale=1e-5, what=name)
    golden.check_all_used()

    if mask is None and taps == TAPS and pred.shape[1] <= 64:  # the assembled terms of the method are the same numbers
        bank = PerceptionBank().with_network('vgg19', variables, 'formula')
        size = pred.shape[1]
        config = LossConfig(
            style=weight, local=0.0, pixel=0.0, identity=0.0, perceptual_scales_raw=scales, perceptual_network='vgg19'
        )

        @jax.jit
        def assembled(bank, pred, target):
            prepared = prepare_targets(bank, config, target, None, {'raw': size})
            return image_terms(bank, config, pred, prepared['raw'], 'raw')

        terms = assembled(bank, pred, target)
        assert set(terms) == {'raw/perceptual', 'raw/style'}
        close(total(terms), golden.out['loss'], rtol=1e-5, what='assembled')
        close(terms['raw/style'], weight * golden.out['gram_l1'].sum(), rtol=1e-4, what='assembled style')


@handles('otavatar', 'gram')
def test_gram(golden):
    close(gram(nhwc(golden.inp['x'])), golden.out['gram'], atol=1e-6, what='gram')
    golden.check_all_used()


@pytest.mark.slow
@handles('otavatar', 'local_loss')
def test_local_loss(golden):
    pred, target = nhwc(golden.inp['pred']), nhwc(golden.inp['target'])
    size = golden.config['H']
    landmarks = jnp.asarray(golden.inp['keypoint']) * (size / 512)
    stored = golden.config['output_sizes']
    sizes = {'mouth': stored['mouth'], 'left_eye': stored['eyes'], 'right_eye': stored['eyes']}
    assert (REGIONS['mouth'][2], REGIONS['left_eye'][2], REGIONS['right_eye'][2]) == (120, 80, 80)

    boxes = region_boxes(landmarks, size)
    order = ('mouth', 'left_eye', 'right_eye', 'nose')
    close(np.stack([boxes[n] for n in order], 1).astype(np.int64), golden.out['boxes'], what='boxes')
    mask = region_mask(boxes, size, golden.config['mask_rate'])
    close(nchw(mask), golden.out['mask'], atol=1e-6, what='mask')

    for name, eyes in (('official', False), ('paper', True)):
        # Once with the boxes known beforehand, once with everything inside the compiled program.
        prepared = local_target(target, landmarks, eyes, sizes)
        close(local_loss(pred, prepared), golden.out[f'loss_{name}'], atol=1e-5, rtol=1e-5, what=name)

        def loss(pred, target, landmarks, eyes=eyes):
            return local_loss(pred, local_target(target, landmarks, eyes, sizes))

        value, grad = jax.jit(jax.value_and_grad(loss))(pred, target, landmarks)
        close(value, golden.out[f'loss_{name}'], atol=1e-5, rtol=1e-5, what=f'{name} compiled')
        expected = golden.grad[f'pred_{name}']
        # Where prediction and target hardly differ, rounding decides the sign of an absolute value.
        found = thinned(nchw(grad), expected)
        close_but_for(found, expected, share=1e-3, atol=1e-5, most=0.05, what=f'gradient {name}')
    terms = local_terms(pred, local_target(target, landmarks, True, sizes))
    parts = [terms[n] for n in ('mouth', 'left_eye', 'right_eye')]
    close(np.stack(parts), golden.out['parts'], atol=1e-5, rtol=1e-5, what='parts')
    golden.check_all_used()


@pytest.mark.slow
@handles('otavatar', 'id_loss')
def test_identity_loss(golden):
    variables = network('arcface18', golden)
    pred, target = nhwc(golden.inp['pred']), nhwc(golden.inp['target'])
    landmarks = jnp.asarray(golden.inp['keypoint']) * (golden.config['H'] / 512)
    close(five_points(landmarks), golden.out['lm5'], atol=1e-4, what='five points')
    matrix = face_matrix(landmarks)
    close(matrix, golden.out['M'], rtol=1e-4, atol=1e-4, what='matrix')
    close(warp_affine(pred, matrix, FACE_SIZE)[..., 0], golden.out['warped'], atol=1e-4, what='warped')
    close(aligned_gray(pred, matrix)[..., 0], golden.out['gray'], atol=1e-4, what='gray')

    def loss(pred, variables, target, landmarks):
        def embed(image):
            return ResNetArcFace().apply(variables, image)

        return identity_loss(embed, pred, identity_target(embed, target, landmarks))

    results = with_moved(jax.jit(jax.value_and_grad(loss)), pred, variables, target, landmarks)
    close(results[0][0], golden.out['loss'], atol=1e-4, what='loss')
    expected = golden.grad['pred']
    within_spread([thinned(nchw(grad), expected) for _, grad in results], expected, what='gradient')
    golden.check_all_used()


@handles('otavatar', 'density_regularisers')
def test_density_regularisers(golden):
    config = golden.config
    planes = jnp.asarray(golden.inp['planes'].transpose(0, 1, 3, 4, 2))
    points, offsets = 2 * jnp.asarray(golden.inp['u']) - 1, jnp.asarray(golden.inp['n'])
    decoder = {
        'net': {
            layer: {
                'weight': jnp.asarray(golden.param[f'net.{layer}.weight'].T),
                'bias': jnp.asarray(golden.param[f'net.{layer}.bias']),
            }
            for layer in ('0', '2')
        }
    }

    def density(planes, decoder):
        def sigma(points):
            return decode(decoder, sample_planes_mean(planes, points, config['box_warp'], 'legacy'))[1]

        return sigma

    terms = {
        'monotonic': lambda p, d: regularisers.monotonic(density(p, d), points, config['box_warp']),
        'tv': lambda p, d: regularisers.total_variation(
            density(p, d), points, offsets, config['density_reg_p_dist'], config['density_reg']
        ),
    }
    for name, term in terms.items():
        value, (planes_grad, decoder_grad) = jax.jit(jax.value_and_grad(term, argnums=(0, 1)))(planes, decoder)
        close(value, golden.out[name], atol=1e-6, what=name)
        close_l2(
            np.asarray(planes_grad).transpose(0, 1, 4, 2, 3), golden.grad[f'{name}.planes'], 1e-4, f'{name} planes'
        )
        for layer in ('0', '2'):
            got = decoder_grad['net'][layer]
            close_l2(np.asarray(got['weight']).T, golden.grad[f'{name}.net.{layer}.weight'], 1e-4, f'{name} {layer}')
            expected = golden.grad[f'{name}.net.{layer}.bias']
            if layer == '2':  # a constant cancels in every difference: only rounding noise is stored
                close(got['bias'], expected, atol=1e-6, what=f'{name} last bias')
            else:
                close_l2(got['bias'], expected, 1e-4, f'{name} bias {layer}')
    golden.check_all_used()


@handles('otavatar', 'metrics')
def test_metrics(golden):
    a, b = nhwc(golden.inp['a']), nhwc(golden.inp['b'])
    close(psnr(a, b, data_range=2.0, over='batch'), golden.out['psnr'], rtol=1e-5, what='psnr')
    layers = [k for k in golden.param if k.startswith('lin')]
    features = [[nhwc(golden.inp[f'feat{i}.{x}']) for i in range(len(layers))] for x in 'ab']
    lin = [jnp.asarray(golden.param[f'lin{i}']).reshape(-1) for i in range(len(layers))]
    value = lpips_layers(*features, lin).sum(-1)
    close(np.asarray(value)[:, None, None, None], golden.out['lpips'], atol=1e-5, rtol=1e-5, what='lpips')
    close(video_bytes(a), golden.out['video_uint8'], what='video frames')
    for name in [k for k in golden.out if k.startswith('area_')]:
        size = int(name.removeprefix('area_'))
        close(nchw(resize(nhwc(golden.inp['big']), size, 'area')), golden.out[name], atol=1e-5, what=name)
    golden.check_all_used()


@handles('otavatar', 'lpips_alex_v01_lin')
def test_lpips_weights(golden):
    """The stored numbers load as LPIPS weights, pass the check of their version, and weigh the channels."""
    bank = PerceptionBank().with_lpips_lin('alex', golden.param, golden.path.name)
    lin = lin_weights(golden.param)
    rng = np.random.default_rng(0)
    a, b = ([jnp.asarray(rng.normal(size=(1, 2, 2, w.size)), jnp.float32) for w in lin] for _ in range(2))
    value = lpips_layers(a, b, bank.lin['alex'])
    for k, w in enumerate(lin):
        ua, ub = (np.asarray(x[k]) / np.linalg.norm(x[k], axis=-1, keepdims=True) for x in (a, b))
        expected = ((ua - ub) ** 2 * np.asarray(golden.param[f'lin{k}.model.1.weight']).reshape(-1)).sum(-1).mean()
        close(value[0, k], expected, rtol=1e-5, what=f'layer {k}')
        assert w.min() >= 0


def test_cosine_distance_of_equal_vectors_is_zero():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)), jnp.float32)
    close(cosine_distance(x, 2 * x), 0.0, atol=1e-6)
    close(cosine_distance(x, -x), 2.0, atol=1e-6)
