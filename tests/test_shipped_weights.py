"""The weight files inside the package load, fit today's code, and make heads that follow their codes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.io.weights import shipped, shipped_names
from avatar_jax.losses.networks import default_bank
from avatar_jax.methods.otavatar import model
from avatar_jax.ops.image_metrics import psnr, to_unit


def test_names_and_size():
    assert {'heads128', 'gpavatar128', 'hidenerf128', 'head_nets', 'face_net', 'expression_net'} <= set(shipped_names())
    assert sum(shipped(name).stat().st_size for name in shipped_names()) < 22e6


def test_stand_ins_load_and_say_so():
    bank = default_bank(128)
    assert bank.has('head_identity') and bank.has('head_coefficients')
    assert 'procedural heads' in dict(bank.sources)['head_identity']


@pytest.fixture(scope='module')
def shipped_model():
    return model.load_model(shipped('heads128'))


@pytest.mark.slow
def test_random_codes_make_different_heads_on_white(shipped_model):
    from data_pipelines.clips import evaluation_clips

    variables, config, digest, provenance = shipped_model
    assert len(digest) == 64 and provenance['command']
    generator = model.TriPlaneGenerator(config.generator)
    label = jnp.asarray(evaluation_clips(1, 0, num_frames=27)[0].labels()[:1]).repeat(3, 0)
    latents = jax.random.normal(jax.random.key(0), (3, config.generator.z_dim))

    @jax.jit
    def heads(weights, z):
        w = generator.apply(weights, z, label, method='mapping')
        return generator.apply(weights, w, label, method='synthesis')

    out = heads(model.network(variables, 'generator'), latents)
    image, opacity = np.asarray(out['image']), np.asarray(out['opacity'])
    assert np.isfinite(image).all() and image.shape == (3, 128, 128, 3)
    middle = slice(24, 40)
    assert opacity[:, middle, middle].mean() > 0.9 and opacity[:, :6, :6].mean() < 0.2
    assert np.abs(image[0] - image[1]).mean() > 0.02


@functools.cache
def sitter_of(number):
    """A person of the split 'test', in pictures of 128 pixels."""
    from avatar_jax.eval.portrait_pictures import Sitter
    from data_pipelines.clips import evaluation_clips

    clip = evaluation_clips(number + 1, 5, num_frames=2)[number]
    return Sitter(clip.identity, clip.gamma, 128)


@pytest.fixture(scope='module')
def gpavatar():
    from avatar_jax.methods.model import choose_model

    return choose_model('gpavatar', None)


def shown(model, avatar, label, expression):
    """[r,r,3] in [-1,1]: an avatar with that expression from that camera."""
    row = np.zeros((1, 70), np.float32)
    row[:, :64] = expression
    return model.frames(avatar, row, label[None]).rgb[0]


def quality(picture, truth, part=np.s_[:]):
    """PSNR in dB of a part of a picture."""
    return float(psnr(to_unit(picture[part][None]), to_unit(truth[part][None]))[0])


@pytest.mark.slow
def test_gpavatar_opens_eyes_that_one_of_two_portraits_shows(gpavatar):
    """A portrait with shut eyes alone does not say what is behind the lids; one more, with open eyes, does."""
    from avatar_jax.eval.portrait_pictures import rendered

    scores = []
    for k in range(4):
        sitter = sitter_of(k)
        shut, open_ = sitter.portrait(-12, blink=1.0), sitter.portrait(10)
        truth, label, code = sitter.picture(20)
        pictures = [rendered(gpavatar, use, label, code) for use in ([shut], [shut, open_])]
        scores.append([quality(p, truth, np.s_[40:70, 30:98]) for p in pictures])  # eyes and brows
    alone, both = np.mean(scores, 0)
    assert both > alone + 0.5


@pytest.mark.slow
def test_gpavatar_moves_lids(gpavatar):
    """What a blink changes in the avatar, as a share of what it changes in the true picture, apart from a pixel or
    two.
    """
    from scipy.ndimage import gaussian_filter

    shares = []
    for k in range(4):
        sitter = sitter_of(k)
        (open_, label, code), (shut, _, blink) = sitter.picture(8), sitter.picture(8, blink=1.0)
        avatar = gpavatar.build([sitter.portrait(-12, smile=0.3)]).avatar
        pictures = [shown(gpavatar, avatar, label, c) for c in (code, blink)]
        ours, true = (gaussian_filter(b - a, (2.5, 2.5, 0)) for a, b in (pictures, (open_, shut)))
        shares.append(np.sum(ours * true) / np.sum(true**2))
    assert min(shares) > 0 and np.mean(shares) > 0.2


@pytest.mark.slow
def test_gpavatar_shows_unseen_people_and_more_portraits_help(gpavatar):
    """Four people of the test split: whose they are, what their faces do, and that each further portrait adds to it."""
    assert gpavatar.provenance['command'] == 'train' and gpavatar.config.settings.preset == 'release'
    scores = []
    for k in range(4):
        sitter = sitter_of(k)
        portraits = [sitter.portrait(yaw) for yaw in (-20, 15, 0, 30)]
        truth, label, code = sitter.picture(25, jaw_open=0.5)
        one, four = (gpavatar.build(portraits[:n]).avatar for n in (1, 4))
        ways = ((one, code), (four, code), (one, 0 * code))
        scores.append([quality(shown(gpavatar, avatar, label, c), truth) for avatar, c in ways])
    one, four, still = np.mean(scores, 0)
    assert one > 20 and four > one + 0.8 and one > still + 0.3


@pytest.mark.slow
def test_hidenerf_shows_unseen_people_whose_mouths_move():
    """Four people of the test split, one portrait each: whose they are, and what their jaws do."""
    from avatar_jax.faces.camera_labels import label_from_pose
    from avatar_jax.methods.model import choose_model
    from avatar_jax.procedural import render_head
    from avatar_jax.procedural.gallery import expression
    from avatar_jax.types import Camera, Portrait

    chosen, scores = choose_model('hidenerf', None), []
    assert chosen.provenance['command'] == 'train'

    def label(yaw):
        turn = np.float32([0, np.radians(yaw), 0])
        return np.asarray(label_from_pose(turn, np.zeros(3, np.float32), chosen.config.label_mode), np.float32)

    def picture(sitter, yaw, **moves):
        code = expression(**moves)
        head = render_head(sitter.identity, code, label(yaw), sitter.gamma, resolution=128, supersample=2)
        return (2 * np.asarray(head.rgb) - 1).astype(np.float32), np.asarray(head.mask, np.float32), code

    for k in range(4):
        image, mask, code = picture(sitter_of(k), -15)
        portrait = Portrait(image=image, camera=Camera.from_label(label(-15)), expression=code, mask=mask)
        truth, _, open_ = picture(sitter_of(k), 10, jaw_open=0.7)
        avatar = chosen.build(portrait).avatar
        scores.append([quality(shown(chosen, avatar, label(10), c), truth) for c in (open_, code)])
    driven, still = np.mean(scores, 0)
    assert driven > 21 and driven > still + 0.8
