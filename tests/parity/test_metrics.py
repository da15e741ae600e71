"""Metrics against reference numbers."""

import jax.numpy as jnp
import numpy as np

from avatar_jax.eval import distributions, faces, sync
from avatar_jax.ops import image_metrics as image
from tests.comparison import close
from tests.parity.golden import handles

SINGLE, DOUBLE = {'rtol': 1e-4}, {'rtol': 1e-6}


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


@handles('metrics', 'image_metrics')
def test_image_metrics(golden):
    target, prediction, mask = (nhwc(golden.inp[k]) for k in ('a', 'b', 'mask'))
    per_image = {
        'mse_per_image': ((prediction - target) ** 2).mean((1, 2, 3)),
        'psnr_range1_per_image': image.psnr(prediction, target),
        'psnr_range1_batch': image.psnr(prediction, target, over='batch'),
        'psnr_torchmetrics_default': image.psnr(prediction, target, data_range='target', over='batch'),
        'psnr_torchmetrics_range1': image.psnr(prediction, target, over='batch'),
        'psnr_masked_per_image': image.psnr(prediction, target, mask=mask),
        'psnr_minus1_1': image.monitor_psnr(2 * prediction - 1, 2 * target - 1),
        'l1': image.l1(prediction, target).mean(),
        'ssim_torchmetrics_default': image.ssim(prediction, target, data_range='both').mean(),
        'ssim_torchmetrics_range1': image.ssim(prediction, target).mean(),
        'ssim_torchmetrics_range1_per_image': image.ssim(prediction, target),
        'ssim_gauss_valid': image.ssim(prediction, target),
        'ssim_gauss_skimage': image.ssim(prediction, target),
        'ssim_uniform7': image.ssim(prediction, target, window='uniform', covariance='sample'),
        'ssim_uniform7_range2': image.ssim(prediction, target, window='uniform', covariance='sample', data_range=2.0),
    }
    for name in golden.out:
        close(per_image[name], golden.out[name], what=name, **SINGLE)
    golden.check_all_used()


@handles('metrics', 'fid')
def test_fid(golden):
    x, y = golden.inp['x'], golden.inp['y']
    for name in golden.out:
        if name.startswith('fid_rank_deficient_first'):
            value = distributions.frechet_distance(x[: int(name.removeprefix('fid_rank_deficient_first'))], y)
        else:
            value = {
                'fid_population': lambda: distributions.frechet_distance(x, y, ddof=0),
                'fid_sample': lambda: distributions.frechet_distance(x, y, ddof=1),
                'kid_full_unbiased': lambda: distributions.kernel_distance(x, y),
            }[name]()
        close(value, golden.out[name], what=name, **DOUBLE)
    golden.check_all_used()


@handles('metrics', 'reenactment')
def test_reenactment(golden):
    inp = golden.inp
    for xp in (np, jnp):
        p, q = xp.asarray(inp['coeff_p']), xp.asarray(inp['coeff_q'])
        kp, kq = xp.asarray(inp['kp_p']), xp.asarray(inp['kp_q'])
        values = {
            'aed_mean': faces.expression_distance(p, q),
            'aed_sum': faces.expression_distance(p, q, 'sum'),
            'apd_angle_mean': faces.pose_distance(p, q),
            'apd_angle_sum': faces.pose_distance(p, q, 'sum'),
            'apd_angle_trans_mean': faces.pose_distance(p, q, parts='angle+trans'),
            'apd_angle_trans_sum': faces.pose_distance(p, q, 'sum', 'angle+trans'),
            'akd_l1_mean': faces.keypoint_distance(kp, kq),
            'akd_l2': faces.keypoint_distance(kp, kq, 'l2'),
            'csim': faces.identity_similarity(xp.asarray(inp['id_p']), xp.asarray(inp['id_q'])),
            'prmse': faces.pose_rmse(xp.asarray(inp['pose_p']), xp.asarray(inp['pose_q'])),
            'aucon': faces.action_unit_agreement(xp.asarray(inp['au_p']), xp.asarray(inp['au_q'])),
            'avd': faces.vertex_distance(xp.asarray(inp['verts_p']), xp.asarray(inp['verts_s'])),
        }
        for name in golden.out:
            close(values[name].mean(), golden.out[name], what=name, **SINGLE)
    golden.check_all_used()


@handles('metrics', 'syncnet_score')
def test_syncnet_score(golden):
    for xp in (np, jnp):
        video, audio = xp.asarray(golden.inp['video']), xp.asarray(golden.inp['audio'])
        scores = sync.sync_scores(video, audio, golden.config['vshift'], golden.config['eps'])
        close(scores.mean_distances, golden.out['mdist'], what='mdist', **SINGLE)
        assert int(scores.offset) == int(golden.out['offset'])
        close(scores.min_distance, golden.out['min_dist'], **SINGLE)
        close(scores.confidence, golden.out['confidence'], **SINGLE)
    golden.check_all_used()
