"""Version 2 of the procedural people: version 1 stays, traits belong to the person, turn with the head, and shade."""

import dataclasses

import numpy as np
import pytest

from avatar_jax.errors import UserError
from avatar_jax.procedural import default_gamma, render_head, sample_identity
from avatar_jax.procedural.gallery import camera_label, expression
from avatar_jax.procedural.looks import Glasses, Hat, KeyLight, Looks, draw_key_light, draw_looks
from avatar_jax.procedural.looks.draw import worn
from avatar_jax.procedural.looks.light import baked_occlusion, depth_map
from avatar_jax.procedural.looks.skin import WRINKLES, wrinkle_strengths
from avatar_jax.procedural.mesh import EYE, GLASSES, HAIR, HAT, SKIN, head_mesh
from avatar_jax.procedural.model import to_world
from avatar_jax.procedural.samples import project

GREEN = np.array([0.02, 0.8, 0.02])
PERSON = sample_identity(5)  # short hair
SPECTACLES = Glasses('rectangle', GREEN, 0.02, 0.26, 0.17, np.full(3, 0.97), 0.0)
BEANIE = Hat('beanie', GREEN, GREEN, 0.7, -0.1)
FRONTAL = KeyLight(np.array([0, 0, 1.0]), np.full(3, 0.3), np.full(3, 0.8), np.array([0, 1.0, 0]), np.zeros(3), 0.03)


def _draw(looks, yaw=0.0, values=None, person=PERSON, light=None, resolution=64, pitch=0.0, **options):
    return render_head(
        person,
        expression(**(values or {})),
        camera_label(yaw, pitch),
        resolution=resolution,
        looks=looks,
        key_light=light,
        **options,
    )


@pytest.mark.parametrize(
    ('seed', 'values', 'yaw', 'cells'),
    [
        (
            3,
            {'viseme_aa': 0.6},
            25,
            '246 234 224 210 164 124 177 141 109 239 235 231 226 210 198 180 138 104 158 120 89 206 196 187 '
            '240 224 212 156 113 85 164 126 96 235 230 227 239 210 209 163 127 103 152 122 109 244 229 228',
        ),
        (
            12,
            {'smile': 0.8},
            -20,
            '127 111 100 145 117 95 188 158 133 148 130 117 161 146 137 203 172 148 207 179 155 197 184 175 '
            '239 236 234 164 137 117 179 138 118 240 236 233 242 225 225 162 119 109 136 101 89 234 209 209',
        ),
        (
            6,
            {'blink': 0.5},
            0,
            '229 217 201 157 113 81 142 101 71 217 204 187 195 174 157 131 84 70 118 75 63 187 170 154 '
            '182 164 144 127 74 61 116 69 57 190 170 148 221 208 218 120 88 93 113 84 90 222 209 217',
        ),
    ],
)
def test_version_1_is_what_it_was(seed, values, yaw, cells):
    """Mean colours of 4 x 4 cells, as drawn before there was another version."""
    head = _draw(1, yaw, values, sample_identity(seed), resolution=32)
    means = np.round(255 * head.rgb.reshape(4, 8, 4, 8, 3).mean((1, 3))).astype(int).ravel()
    assert np.abs(means - np.array(cells.split(), int)).max() <= 1


def test_traits_belong_to_the_person_and_light_to_its_coefficients():
    first, again, other = draw_looks(PERSON), draw_looks(PERSON.copy()), draw_looks(sample_identity(1))
    assert repr(first) == repr(again) != repr(other)
    gamma = default_gamma()
    assert repr(draw_key_light(gamma)) == repr(draw_key_light(gamma.copy())) != repr(draw_key_light(gamma * 1.1))
    a, b = _draw(2, 10, resolution=32), _draw(2, 10, resolution=32)
    np.testing.assert_array_equal(a.rgb, b.rgb)
    assert np.abs(a.rgb - _draw(1, 10, resolution=32).rgb).mean() > 0.01
    with pytest.raises(UserError, match='looks 3.*1, 2'):
        _draw(3)


def test_people_are_various():
    people = [draw_looks(sample_identity(k)) for k in range(200)]
    glasses = [p.glasses for p in people if p.glasses]
    hats = [p.hat for p in people if p.hat]
    assert 40 < len(glasses) < 100 and len({g.shape for g in glasses}) == 6
    assert 3 < sum(g.tint.mean() < 0.5 for g in glasses) < 25
    assert 10 < len(hats) < 45 and len({h.kind for h in hats}) == 3
    assert len({p.pattern for p in people}) == 6
    for name in ('freckles', 'grey', 'thinning', 'liner', 'lip', 'redness'):
        values = np.array([getattr(p, name) for p in people])
        assert values.min() == pytest.approx(0, abs=0.01) and values.max() > 0.4, name


@pytest.mark.parametrize('yaw', [-50, 0, 35])
def test_glasses_turn_with_the_head(yaw):
    looks = Looks(glasses=SPECTACLES)
    head, bare = _draw(looks, yaw), _draw(Looks(), yaw)
    frame = worn(PERSON, looks).frame
    at = project(to_world(frame.vertices), camera_label(yaw), 64, 64)[:, :2]
    rows, columns = np.nonzero(head.part == GLASSES)
    assert len(rows) > 40
    seen = np.stack([columns, rows], 1) + 0.5
    assert np.linalg.norm(seen[:, None] - at[None], axis=-1).min(1).max() < 3  # the sides are long squares
    green = head.rgb[..., 1] - head.rgb[..., 0]
    assert np.median(green[head.part == GLASSES]) > 0.1 > np.median(green[bare.part == EYE])
    # They belong to the head: to its mask, and to its depth, nearer than what they stand before.
    on = (head.part == GLASSES) & (bare.part == SKIN)
    assert (head.mask[head.part == GLASSES] >= 0.25).all()
    assert (bare.depth - head.depth)[on].mean() > 0.005
    np.testing.assert_array_equal(head.landmarks, bare.landmarks)


def test_the_head_hides_what_is_behind_it():
    looks = Looks(glasses=SPECTACLES)
    frame = worn(PERSON, looks).frame
    front = frame.vertices[frame.vertices[:, 2] > 0.15]
    for yaw in (180, 90):
        at = project(to_world(front), camera_label(yaw), 64, 64)
        far = at[(front[:, 0] < -0.2) | (yaw == 180), :2].astype(int)  # of the side that is turned away
        part = _draw(looks, yaw).part[far[:, 1], far[:, 0]]
        assert (part == GLASSES).mean() < 0.35, yaw
    assert (_draw(looks, 180).part == GLASSES).sum() < 12


def test_glasses_stand_clear_of_the_face():
    for seed in range(6):
        person = sample_identity(seed)
        head, frame = _draw(Looks(), person=person), worn(person, Looks(glasses=SPECTACLES)).frame
        eyes = head.vertices[head_mesh().part == EYE]
        rims = frame.vertices[frame.vertices[:, 2] > 0.2]
        assert rims[:, 2].min() > eyes[:, 2].max() - 0.1
        assert abs(rims[:, 1].mean() - eyes[:, 1].mean()) < 0.12 and abs(rims[:, 0].mean()) < 0.03


def test_dark_lenses_hide_the_eyes_and_clear_ones_mirror():
    bare = _draw(Looks(), light=FRONTAL)
    dark = _draw(Looks(glasses=dataclasses.replace(SPECTACLES, tint=np.full(3, 0.1))), light=FRONTAL)
    clear = _draw(Looks(glasses=SPECTACLES), light=FRONTAL)
    shiny = _draw(Looks(glasses=dataclasses.replace(SPECTACLES, reflection=1.0)), light=FRONTAL)
    eye = (bare.part == EYE) & (clear.part == EYE)
    assert dark.rgb[eye].mean() < 0.45 * bare.rgb[eye].mean()
    assert np.abs(clear.rgb - bare.rgb)[eye].mean() < 0.08
    assert (dark.part[eye] == GLASSES).all() and (dark.depth < bare.depth)[eye].all()
    assert (shiny.rgb - clear.rgb)[eye].mean() > 0.02


@pytest.mark.parametrize('kind', ['beanie', 'cap', 'brim'])
def test_hats_cover_the_hair(kind):
    hat = dataclasses.replace(BEANIE, kind=kind)
    bare, covered = _draw(Looks()), _draw(Looks(hat=hat))
    top = (bare.part == HAIR) & (np.arange(64)[:, None] < 6)
    assert top.sum() > 50 and (covered.part[top] == HAT).mean() > 0.97
    assert covered.mask[covered.part == HAT].mean() > 0.9
    eyes = bare.part == EYE
    assert (covered.part[eyes] == EYE).mean() > 0.8
    np.testing.assert_array_equal(bare.landmarks, covered.landmarks)


def test_wrinkles_grow_with_the_expressions_that_make_them():
    looks = Looks(age=0.3, wrinkles=1.0)
    rest = wrinkle_strengths(expression(), looks)
    assert set(rest) == set(WRINKLES)
    for values, grown in (
        ({'brow_inner_up': 1}, {'forehead'}),
        ({'brow_furrow': 1}, {'frown'}),
        ({'smile': 1}, {'crow_l', 'crow_r', 'fold_l', 'fold_r'}),
        ({'cheek_squint_l': 1}, {'crow_l'}),
    ):
        now = wrinkle_strengths(expression(**values), looks)
        assert {k for k in now if now[k] > rest[k] + 0.3} == grown
    assert all(v > rest[k] for k, v in wrinkle_strengths(expression(), dataclasses.replace(looks, age=1.0)).items())

    def lines(values):  # what the wrinkles change in the picture
        pair = [_draw(dataclasses.replace(looks, wrinkles=w), values=values, light=FRONTAL).rgb for w in (0.0, 1.0)]
        return np.abs(pair[1] - pair[0]).mean(-1)

    still = lines({})
    assert lines({'brow_inner_up': 1})[:24].sum() > 1.8 * still[:24].sum()
    assert lines({'smile': 1})[24:].sum() > 1.5 * still[24:].sum()


def test_a_shadow_falls_behind_what_stands_in_the_light():
    square = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0.0]])
    tall = square * [0.4, 0.4, 1] + [0, 0, 0.6]
    points = np.concatenate([square, tall])
    triangles = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    below = np.array([[0.0, 0, 0], [0.2, -0.2, 0], [0.9, 0, 0], [-0.8, 0.8, 0], [0, 0, 0.6]], np.float32)
    np.testing.assert_allclose(depth_map(points, triangles, [0, 0, 1.0]).lit(below), [0, 0, 1, 1, 1], atol=0.05)
    slanted = np.array([1.0, 0, 1]) / 2**0.5  # it moves away from the light
    moved = np.array([[-0.6, 0, 0], [0.2, 0, 0]], np.float32)
    np.testing.assert_allclose(depth_map(points, triangles, slanted).lit(moved), [0, 1], atol=0.05)
    soft = depth_map(points, triangles, [0, 0, 1.0], softness=0.1).lit(np.float32([[0.4, 0, 0]]))
    assert 0.05 < soft[0] < 0.95


def test_the_side_away_from_the_light_is_dark():
    side = dataclasses.replace(FRONTAL, direction=np.array([-0.9, 0.2, 0.39]) / np.linalg.norm([-0.9, 0.2, 0.39]))
    lamp = dataclasses.replace(side, colour=np.full(3, 0.8), ambient=np.full(3, 0.3))
    head = _draw(Looks(), light=lamp, gamma=np.zeros(27))
    skin = head.part == SKIN
    left, right = (head.rgb[rows].mean() for rows in (skin & (np.arange(64) < 26), skin & (np.arange(64) > 38)))
    assert left > 1.8 * right
    # A brim shades the forehead under it.
    above = dataclasses.replace(lamp, direction=np.array([0, 0.94, 0.34]))
    hat = Looks(hat=Hat('brim', GREEN, GREEN, 0.8, 0.2))
    shaded, open_ = (_draw(k, light=above, gamma=np.zeros(27)) for k in (hat, Looks()))
    eyes = (shaded.part == open_.part) & skin & (np.abs(np.arange(64) - 24) < 4)[:, None]
    assert eyes.sum() > 30 and shaded.rgb[eyes].mean() < 0.75 * open_.rgb[eyes].mean()


def test_light_does_not_reach_hollows():
    reached, m = baked_occlusion('short'), head_mesh()
    nose = np.argmax(m.positions[:, 2])
    throat = (m.part == SKIN) & (m.positions[:, 1] < -0.9) & (m.positions[:, 2] < -0.15) & (m.follow < 0)
    assert 0.9 < reached[nose] <= 1 and reached[throat].mean() < 0.6
    assert reached.min() >= 0


def test_hair_ends_in_strands():
    person = sample_identity(0)  # a bob
    traits = Looks(frizz=1.0)
    head, plain = _draw(traits, person=person), _draw(1, person=person)
    assert ((head.mask > 0.01) & (head.mask < 0.99)).sum() > 1.2 * ((plain.mask > 0.01) & (plain.mask < 0.99)).sum()
    hair = (head.part == HAIR) & (plain.part == HAIR)
    assert _draw(Looks(grey=1.0), person=person).rgb[hair].mean() > 1.3 * _draw(Looks(), person=person).rgb[hair].mean()
    thin, dense = (_draw(Looks(thinning=t), pitch=50.0) for t in (1.0, 0.0))
    assert (thin.part == HAIR).sum() < 0.85 * (dense.part == HAIR).sum()
    assert (thin.part[dense.part == HAIR] == SKIN).mean() > 0.15  # the scalp shows


@pytest.mark.parametrize(
    'trait', ['moles', 'freckles', 'lip', 'lid', 'liner', 'blush', 'redness', 'stubble', 'pattern', 'teeth']
)
def test_every_trait_is_seen(trait):
    more = {
        'moles': np.array([[0.3, -0.1, 0.05, 1.0]]),
        'pattern': 'dots',
    }.get(trait, 1.0)
    person = sample_identity(12)
    values = {'viseme_ih': 1.0} if trait == 'teeth' else {}
    pair = [
        _draw(dataclasses.replace(Looks(teeth=0.0, stubble=0.0), **{trait: v}), values=values, person=person).rgb
        for v in (getattr(Looks(teeth=0.0, stubble=0.0), trait), more)
    ]
    change = np.abs(pair[1] - pair[0]).max(-1)
    assert change.max() > 0.04 and (change == 0).mean() > 0.5  # and only where it belongs
