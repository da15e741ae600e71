"""The fixed mesh of the procedural head: parts, triangles, canonical coordinates, neutral mean positions.

The skin is one grid (rows of height, columns of azimuth) with three slits: the two eyes and the mouth, whose edges are
doubled vertices. A closed eye or mouth is a slit whose two edges coincide, so lids and lips close without a gap. All
other parts (mouth bag, teeth, tongue, eyeballs, ears, clothes, hair) are small grids of their own.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from avatar_jax.procedural import surface as face
from avatar_jax.procedural.curves import step
from avatar_jax.procedural.mesh_landmarks import landmark_vertices
from avatar_jax.procedural.skin import A1, A2, A3, COLUMNS, EYE_ROW, MOUTH_ROW, ROWS, skin_points

SKIN, MOUTH, EYE, TEETH, TONGUE, EAR, HAIR, CLOTH = range(8)
GLASSES, HAT = 8, 9  # worn, not in the mesh
PART_NAMES = ('skin', 'mouth', 'eye', 'teeth', 'tongue', 'ear', 'hair', 'cloth', 'glasses', 'hat')
HAIR_RINGS, HAIR_COLUMNS = 16, 44
BUN_RINGS, BUN_COLUMNS = 6, 10


@dataclasses.dataclass(frozen=True)
class HeadMesh:
    """The constant part of the model; V vertices, F triangles.

    Attributes:
        positions: [V, 3] neutral mean head (hair at the surface of the skull), decimetre.
        triangles: [F, 3]; front faces counter-clockwise seen from outside.
        part: [V] part number of each vertex; face_part: [F]; two_sided: [F] bool.
        azimuth, height: [V] surface coordinates (skin, and hair or cloth where they follow it).
        side: [V] +1 above, -1 below the nearest slit line, for vertices on a doubled edge; the sign of the distance
            else.
        canonical: [V, 2] painting coordinates of the part (skin: height, and |x| of the mean in front, above 1 behind).
        eye: [V] -1 image left eye, +1 image right eye, 0 elsewhere (eyeballs and lid rims).
        follow, follow_factor: [V] vertex whose expression motion is copied, and its factor (-1 where none).
        occlusion: [V] ambient light that arrives, 0..1.
        landmark_ids: [68] iBUG order.
        eye_slits: for 'l' and 'r' the vertices of the (upper, lower) lid edge, corners included.
    """

    positions: np.ndarray
    triangles: np.ndarray
    part: np.ndarray
    face_part: np.ndarray
    two_sided: np.ndarray
    azimuth: np.ndarray
    height: np.ndarray
    side: np.ndarray
    canonical: np.ndarray
    eye: np.ndarray
    follow: np.ndarray
    follow_factor: np.ndarray
    occlusion: np.ndarray
    landmark_ids: np.ndarray
    eye_slits: dict

    def of(self, part: int) -> np.ndarray:
        """Vertex indices of one part."""
        return np.flatnonzero(self.part == part)


class _Builder:
    def __init__(self):
        self.fields = {
            k: []
            for k in (
                'positions',
                'part',
                'azimuth',
                'height',
                'side',
                'canonical',
                'eye',
                'follow',
                'follow_factor',
                'occlusion',
            )
        }
        self.tris, self.tri_part, self.tri_two = [], [], []
        self.count = 0

    def add(
        self,
        positions,
        part,
        *,
        azimuth=0.0,
        height=0.0,
        side=0.0,
        canonical=None,
        eye=0,
        follow=-1,
        follow_factor=0.0,
        occlusion=1.0,
    ):
        n = len(positions)
        first = self.count
        canonical = np.zeros((n, 2)) if canonical is None else canonical
        for key, value in {
            'positions': positions,
            'part': part,
            'azimuth': azimuth,
            'height': height,
            'side': side,
            'canonical': canonical,
            'eye': eye,
            'follow': follow,
            'follow_factor': follow_factor,
            'occlusion': occlusion,
        }.items():
            value = np.asarray(value)
            shape = (n,) + (value.shape[1:] if value.ndim else ())
            self.fields[key].append(np.broadcast_to(value, shape))
        self.count += n
        return first + np.arange(n)

    def faces(self, tris, part, two_sided=False):
        tris = np.asarray(tris).reshape(-1, 3)
        tris = tris[(tris[:, 0] != tris[:, 1]) & (tris[:, 1] != tris[:, 2]) & (tris[:, 0] != tris[:, 2])]
        self.tris.append(tris)
        self.tri_part.append(np.full(len(tris), part))
        self.tri_two.append(np.full(len(tris), two_sided))

    def grid(self, top, bottom, part, wrap=False, two_sided=False):
        """Quads between two rows of vertex indices, seen from outside with columns running to the right."""
        if wrap:
            top, bottom = np.append(top, top[0]), np.append(bottom, bottom[0])
        tl, tr, bl, br = top[:-1], top[1:], bottom[:-1], bottom[1:]
        self.faces(np.concatenate([np.stack([tl, bl, br], 1), np.stack([tl, br, tr], 1)]), part, two_sided)


def _skin(b: _Builder):
    rows, cols = len(ROWS), len(COLUMNS)
    v, a = np.meshgrid(ROWS, COLUMNS, indexing='ij')
    line = np.where(v > -0.05, face.EYE_LINE, face.MOUTH_LINE)
    side = np.where(v >= line, 1.0, -1.0)
    x_eye, x_mouth = face.EYE_SECTION * np.sin(a), face.MOUTH_SECTION * np.sin(a)
    across = np.abs(x_eye * step(-0.05, 0.1, v) + x_mouth * step(0.1, -0.05, v))
    canonical = np.stack([np.where(np.cos(a) > 0, across, 1 + 0.3 * (np.abs(a) - np.pi / 2)), v], -1)
    points = skin_points(a, v, side)
    ids = b.add(
        points.reshape(-1, 3),
        SKIN,
        azimuth=a.ravel(),
        height=v.ravel(),
        side=side.ravel(),
        canonical=canonical.reshape(-1, 2),
    ).reshape(rows, cols)
    below = ids.copy()  # the copy of each row that the cells below it use
    slits = {}
    front = np.cos(COLUMNS) > 0.5
    for name, row, cut in (
        ('eye_l', EYE_ROW, front & (COLUMNS > -A2 + 1e-6) & (COLUMNS < -A1 - 1e-6)),
        ('eye_r', EYE_ROW, front & (COLUMNS > A1 + 1e-6) & (COLUMNS < A2 - 1e-6)),
        ('mouth', MOUTH_ROW, front & (np.abs(COLUMNS) < A3 - 1e-6)),
    ):
        c = np.flatnonzero(cut)
        p = skin_points(COLUMNS[c], np.full(len(c), ROWS[row]), np.full(len(c), -1.0))
        below[row, c] = b.add(p, SKIN, azimuth=COLUMNS[c], height=ROWS[row], side=-1.0, canonical=canonical[row, c])
        ends = (c[0] - 1, c[-1] + 1)
        slits[name] = (
            np.concatenate([[ids[row, ends[0]]], ids[row, c], [ids[row, ends[1]]]]),
            np.concatenate([[ids[row, ends[0]]], below[row, c], [ids[row, ends[1]]]]),
        )
    for r in range(rows - 1):
        b.grid(below[r], ids[r + 1], SKIN, wrap=True)
    pole = b.add(np.array([[0, face.CROWN, -0.55]]), SKIN, height=face.CROWN, side=1.0, canonical=np.array([[0, 1.25]]))
    top = np.append(ids[0], ids[0][0])
    b.faces(np.stack([np.full(cols, pole[0]), top[:-1], top[1:]], 1), SKIN)
    return ids, slits


def _slit_points(b: _Builder, index):
    return np.concatenate(b.fields['positions'])[index]


def _eyes(b: _Builder, slits):
    for sign, name in ((-1, 'eye_l'), (1, 'eye_r')):
        centre = np.array([sign * face.EYE_X, face.EYE_Y, face.EYE_Z])
        for edge, lid in zip(slits[name], (1.0, -1.0), strict=True):
            p = _slit_points(b, edge)
            inward = centre - p
            inner = p + inward * (0.026 / np.linalg.norm(inward, axis=1, keepdims=True))
            rim = b.add(
                inner,
                SKIN,
                azimuth=0,
                height=face.EYE_LINE,
                side=lid,
                eye=sign,
                follow=edge,
                follow_factor=1.0,
                occlusion=0.65,
                canonical=np.stack([np.full(len(edge), 9.0), np.full(len(edge), lid)], 1),
            )
            top, bottom = (edge, rim) if lid > 0 else (rim, edge)
            b.grid(top, bottom, SKIN, two_sided=True)
        rings, around = 9, 18
        polar = np.radians(100) * (np.arange(1, rings + 1) / rings)
        phi = 2 * np.pi * np.arange(around) / around
        direction = np.stack(
            [
                np.outer(np.sin(polar), np.cos(phi)),
                np.outer(np.sin(polar), np.sin(phi)),
                np.repeat(np.cos(polar)[:, None], around, 1),
            ],
            -1,
        ).reshape(-1, 3)
        direction = np.concatenate([[[0, 0, 1.0]], direction])
        ids = b.add(centre + face.EYE_RADIUS * direction, EYE, canonical=direction[:, :2], eye=sign, height=face.EYE_Y)
        first = ids[1 : 1 + around]
        b.faces(np.stack([np.full(around, ids[0]), first, np.roll(first, -1)], 1), EYE)
        for r in range(rings - 1):
            inner = ids[1 + r * around : 1 + (r + 1) * around]
            outer = ids[1 + (r + 1) * around : 1 + (r + 2) * around]
            b.grid(inner, outer, EYE, wrap=True)


def _mouth(b: _Builder, slits):
    upper, lower = slits['mouth']
    shape = [
        (1.0, 0.035, 0.055, 0.9, 0.75),
        (0.98, 0.085, 0.16, 0.9, 0.40),
        (0.85, 0.10, 0.34, 0.75, 0.16),
        (0.6, 0.06, 0.55, 0.5, 0.06),
    ]
    pu, pl = _slit_points(b, upper), _slit_points(b, lower)
    previous = (upper, lower)
    for squeeze, rise, depth, factor, light in shape:
        rings = []
        for edge, p, sign in ((upper, pu, 1), (lower, pl, -1)):
            q = p.copy()
            ramp = np.clip(1 - np.square(p[:, 0] / np.abs(p[0, 0])), 0, 1) ** 0.5
            q[:, 0] *= squeeze
            q[:, 1] += sign * rise * ramp * (1 if sign > 0 else 0.55)
            q[:, 2] = np.minimum(q[:, 2], 0.40) - depth - (0.02 if sign < 0 else 0) * ramp
            rings.append(
                b.add(
                    q,
                    MOUTH,
                    height=face.MOUTH_LINE,
                    side=sign,
                    follow=edge,
                    follow_factor=factor,
                    occlusion=light,
                    canonical=np.stack([p[:, 0], np.full(len(p), depth)], 1),
                )
            )
        b.grid(previous[0], rings[0], MOUTH, two_sided=True)
        b.grid(rings[1], previous[1], MOUTH, two_sided=True)
        previous = rings
    b.grid(previous[0], previous[1], MOUTH, two_sided=True)
    theta = np.radians(np.linspace(-84, 84, 15))
    for upper_jaw, heights, radius in (
        (True, (-0.285, -0.330, -0.365, -0.402), 0.212),
        (False, (-0.392, -0.425, -0.455, -0.485), 0.192),
    ):
        y, t = np.meshgrid(np.array(heights), theta, indexing='ij')
        bow = 0.012 * np.square(np.sin(t)) * (1 if upper_jaw else -1)
        lean = 0.03 * (y - heights[0]) / (heights[-1] - heights[0]) * (1 if upper_jaw else -1)
        p = np.stack(
            [0.205 * np.sin(t) * (1.0 if upper_jaw else 0.94), y + bow, 0.085 + (radius + lean) * np.cos(t)], -1
        )
        light = (0.30 + 0.62 * np.cos(t) ** 1.5) * (0.9 if upper_jaw else 0.8)
        ids = b.add(
            p.reshape(-1, 3),
            TEETH,
            side=1.0 if upper_jaw else -1.0,
            height=face.MOUTH_LINE,
            canonical=np.stack([t, y], -1).reshape(-1, 2),
            occlusion=light.ravel(),
        ).reshape(4, -1)
        for r in range(3):
            b.grid(ids[r], ids[r + 1], TEETH, two_sided=True)
    # From under the tip over it to the root: z, y under the top, half width.
    z, drop, half = np.array(
        [
            (0.225, 0.105, 0.06),
            (0.262, 0.070, 0.105),
            (0.268, 0.032, 0.125),
            (0.240, 0.008, 0.138),
            (0.16, 0, 0.14),
            (0.02, 0, 0.14),
            (-0.12, 0.01, 0.14),
        ]
    ).T
    zz, xx = np.meshgrid(z, np.linspace(-1, 1, 7), indexing='ij')
    p = np.stack(
        [half[:, None] * xx, -0.430 - 0.030 * xx**2 - drop[:, None], zz - 0.03 * xx**2 * (drop > 0.02)[:, None]], -1
    )
    light = 0.35 + 0.4 * np.clip(zz / 0.27, 0, 1)
    ids = b.add(
        p.reshape(-1, 3),
        TONGUE,
        side=-1.0,
        height=face.MOUTH_LINE,
        occlusion=light.ravel(),
        canonical=np.stack([xx, zz], -1).reshape(-1, 2),
    ).reshape(7, 7)
    for r in range(6):
        b.grid(ids[r + 1], ids[r], TONGUE, two_sided=True)


def _ears(b: _Builder):
    phi = 2 * np.pi * np.arange(18) / 18
    radii = np.array([0.0, 0.30, 0.55, 0.74, 0.88, 1.0, 1.0])
    for sign in (-1, 1):
        r, t = np.meshgrid(radii[1:], phi, indexing='ij')
        ids = []
        for rr, tt, ring in (
            (np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1))),
            (r, t, np.arange(1, 7)[:, None] + 0 * t),
        ):
            egg = 1 + 0.20 * np.sin(tt) - 0.06 * np.cos(tt)  # broad on top, narrow lobe
            back = -rr * np.cos(tt) * 0.125 * egg  # towards the back of the head
            up = rr * np.sin(tt) * 0.235
            back = back + 0.16 * up  # leans back
            helix = step(0.95, 0.2, np.cos(tt - 0.5)) * step(-1.0, -0.5, np.sin(tt))
            rim = 0.030 * np.exp(-np.square((rr - 0.93) / 0.10)) * helix
            concha = (
                -0.050 * np.exp(-np.square((rr - 0.12) / 0.34)) + 0.020 * np.exp(-np.square((rr - 0.58) / 0.11)) * helix
            )
            groove = -0.020 * np.exp(-np.square((rr - 0.76) / 0.08)) * helix
            out = 0.035 + 0.46 * np.clip(back + 0.125, 0, 1) + rim + concha + groove
            out = np.where(ring == 6, out - 0.05, out)
            attach = step(0.25, 1.0, np.cos(tt)) * rr
            out = out * (1 - attach) - 0.02 * attach
            x = sign * (0.690 + out)
            z = -0.545 - back + np.where(ring == 6, 0.01, 0)
            y = 0.110 + up
            light = np.clip(0.80 + (rim + concha + groove) * 9, 0.42, 1) * np.where(ring == 6, 0.75, 1)
            ids.append(
                b.add(
                    np.stack([x, y, z], -1).reshape(-1, 3),
                    EAR,
                    height=y.ravel(),
                    azimuth=sign * 1.5,
                    occlusion=light.ravel(),
                    canonical=np.stack([rr, tt], -1).reshape(-1, 2),
                )
            )
        centre, ring = ids[0][0], ids[1].reshape(6, 18)
        order = ring if sign < 0 else ring[:, ::-1]
        b.faces(np.stack([np.full(18, centre), order[0], np.roll(order[0], -1)], 1), EAR, True)
        for k in range(5):
            b.grid(order[k], order[k + 1], EAR, wrap=True, two_sided=True)


def _cloth(b: _Builder):
    width = [0.44, 0.47, 0.56, 0.74, 1.0, 1.3, 1.55, 1.66, 1.68]
    y_side = [-0.86, -0.90, -0.955, -1.02, -1.09, -1.19, -1.36, -1.60, -1.85]
    y_front = [-1.10, -1.16, -1.25, -1.36, -1.46, -1.56, -1.66, -1.76, -1.88]
    y_back = [-0.88, -0.93, -0.99, -1.06, -1.15, -1.25, -1.40, -1.62, -1.85]
    front = [-0.175, -0.135, -0.05, 0.05, 0.13, 0.19, 0.24, 0.26, 0.26]
    back = [-1.0, -1.04, -1.09, -1.13, -1.16, -1.19, -1.2, -1.2, -1.2]
    a = np.linspace(-np.pi, np.pi, 36, endpoint=False) + np.pi / 36
    rows = []
    for k in range(9):
        s, c = np.sin(a), np.cos(a)
        power = 1 - 0.25 * k / 8
        x = width[k] * np.sign(s) * np.abs(s) ** power
        mid = -0.58 + 0.12 * (k / 8)
        z = mid + np.where(c > 0, front[k] - mid, mid - back[k]) * np.sign(c) * np.abs(c) ** power
        y = y_side[k] + np.where(c > 0, y_front[k] - y_side[k], y_back[k] - y_side[k]) * np.abs(c) ** 1.6
        light = 0.55 + 0.45 * min(k / 3, 1)
        rows.append(
            b.add(
                np.stack([x, y, z], -1),
                CLOTH,
                azimuth=a,
                height=y,
                occlusion=light,
                canonical=np.stack([np.abs(a), np.full(len(a), float(k))], 1),
            )
        )
    for k in range(8):
        b.grid(rows[k], rows[k + 1], CLOTH, wrap=True, two_sided=True)


def _hair(b: _Builder):
    a = hair_azimuths()
    ids = []
    for r in range(HAIR_RINGS):
        s = r / (HAIR_RINGS - 1)
        p = face.surface(a, np.full(len(a), face.CROWN - 0.01 - 0.9 * s), relief=False)
        ids.append(b.add(p, HAIR, azimuth=a, height=p[:, 1], canonical=np.stack([a, np.full(len(a), s)], 1)))
        if r:
            b.grid(ids[r - 1], ids[r], HAIR, wrap=True, two_sided=True)
    n = BUN_COLUMNS
    t = 2 * np.pi * np.arange(n) / n
    bun = []
    for r in range(BUN_RINGS):
        bun.append(
            b.add(
                np.tile([[0, 1.0, -1.2]], (n, 1)),
                HAIR,
                height=1.0,
                canonical=np.stack([t, np.full(n, 2.0 + r / (BUN_RINGS - 1))], 1),
            )
        )
        if r:
            b.grid(bun[r - 1], bun[r], HAIR, wrap=True, two_sided=True)


def hair_azimuths() -> np.ndarray:
    """Azimuths of the columns of the hair shell, denser at the sides of the face."""
    half = np.concatenate([np.linspace(0, 0.7, 7)[:-1], np.linspace(0.7, 1.7, 10)[:-1], np.linspace(1.7, np.pi, 8)])
    return np.concatenate([-half[1:-1][::-1], half])


@functools.lru_cache(maxsize=1)
def head_mesh() -> HeadMesh:
    """Builds (once) the fixed mesh."""
    b = _Builder()
    ids, slits = _skin(b)
    _eyes(b, slits)
    _mouth(b, slits)
    _ears(b)
    _cloth(b)
    _hair(b)
    f = {k: np.concatenate(v) for k, v in b.fields.items()}
    return HeadMesh(
        positions=f['positions'].astype(np.float32),
        triangles=np.concatenate(b.tris).astype(np.int32),
        part=f['part'].astype(np.int32),
        face_part=np.concatenate(b.tri_part).astype(np.int32),
        two_sided=np.concatenate(b.tri_two),
        azimuth=f['azimuth'].astype(np.float64),
        height=f['height'].astype(np.float64),
        side=f['side'].astype(np.float64),
        canonical=f['canonical'].astype(np.float32),
        eye=f['eye'].astype(np.int32),
        follow=f['follow'].astype(np.int32),
        follow_factor=f['follow_factor'].astype(np.float64),
        occlusion=f['occlusion'].astype(np.float32),
        landmark_ids=landmark_vertices(f['positions'], ids, slits),
        eye_slits={'l': slits['eye_l'], 'r': slits['eye_r']},
    )
