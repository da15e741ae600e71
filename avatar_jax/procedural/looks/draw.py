"""A picture of version 2: the head with its hair as a layer of strands, glasses and hat, under key light and shadow."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from avatar_jax.procedural.appearance import ambient, mean_albedo, paint_base, texture_basis
from avatar_jax.procedural.identity import TEXTURE_DIM, split_identity
from avatar_jax.procedural.looks.accessories import Piece, glasses_pieces, hat_line, hat_piece, outward
from avatar_jax.procedural.looks.clothes import paint_cloth, paint_frame, paint_hat
from avatar_jax.procedural.looks.hair import fuzz_alpha, hair_alpha, paint_hair, strand_noise, tangents, to_tip
from avatar_jax.procedural.looks.light import DepthMap, baked_occlusion, depth_map
from avatar_jax.procedural.looks.skin import paint_moist, paint_skin, wrinkle_strengths
from avatar_jax.procedural.looks.traits import KeyLight, Looks
from avatar_jax.procedural.mesh import CLOTH, EAR, EYE, GLASSES, HAIR, HAT, MOUTH, SKIN, TEETH, TONGUE, head_mesh
from avatar_jax.procedural.model import hair_binding, head_vertices, to_world
from avatar_jax.procedural.samples import BLOCK, Samples, length, project, rays, sh_light, skin_tone, vertex_normals
from avatar_jax.procedural.style import Style, decode_style, hair_vertices
from avatar_jax.render.rasterizer import interpolate_flat, visible

# Columns of the attributes of a vertex.
_NORMAL, _ALBEDO, _CANONICAL, _AMBIENT = slice(0, 3), slice(3, 6), slice(6, 9), 9
_AZIMUTH, _POSITION, _TANGENT = 10, slice(11, 14), slice(14, 17)
_WRAP = np.array([0.20, 0.07, 0.05], np.float32)  # light that comes out of the skin beyond the shadow's edge is red
# Sharp and wide highlights of each part (skin, mouth, eye, teeth, tongue, ear, hair, cloth, glasses, hat).
_WIDE = np.array([0.055, 0.10, 0.06, 0.12, 0.14, 0.05, 0.0, 0.012, 0.10, 0.012], np.float32)
_SHARP = np.array([0.035, 0.25, 0.0, 0.50, 0.45, 0.03, 0.0, 0.0, 0.55, 0.0], np.float32)


@dataclass(frozen=True)
class _Worn:
    """Glasses' frame and lenses, and a hat, of one person (None where there is none)."""

    frame: Piece | None
    lenses: Piece | None
    hat: Piece | None


_WORN: dict[bytes, _Worn] = {}
_LOCK = threading.Lock()  # pipelines draw in threads


def worn(identity: np.ndarray, looks: Looks) -> _Worn:
    """The accessories of a person [192] in the head's frame; the last ones are remembered."""
    if looks.glasses is None and looks.hat is None:
        return _Worn(None, None, None)
    key = np.ascontiguousarray(identity, np.float32).tobytes() + repr((looks.glasses, looks.hat)).encode()
    with _LOCK:
        found = _WORN.get(key)
    if found is None:
        shape, _, style = split_identity(identity)
        neutral = head_vertices(shape, np.zeros(64, np.float32), style)
        frame, lenses = (None, None) if looks.glasses is None else glasses_pieces(looks.glasses, neutral)
        found = _Worn(frame, lenses, None if looks.hat is None else hat_piece(looks.hat, neutral))
        with _LOCK:
            while len(_WORN) >= 32:
                _WORN.pop(next(iter(_WORN)))
            _WORN[key] = found
    return found


def _under_hat(vertices: np.ndarray, style_numbers: np.ndarray, looks: Looks) -> None:
    """Presses the hair above the hat's edge to the skull, in place."""
    index, weight = hair_binding(style_numbers)
    hair = hair_vertices()
    skull = np.einsum('nk,nkd->nd', weight, vertices[index])
    line = hat_line(looks.hat, head_mesh().azimuth[hair])
    under = np.clip((vertices[hair, 1] - line + 0.16) / 0.14, 0, 1)[:, None]
    pressed = skull + 0.03 * outward(skull)
    vertices[hair] += (under * (pressed - vertices[hair])).astype(np.float32)


class _Scene:
    """All vertices and triangles of one picture, in layers: what is solid, the hair's shell, its fuzz."""

    def __init__(self, identity, expression, looks: Looks):
        self.mesh = mesh = head_mesh()
        shape, texture, style_numbers = split_identity(identity)
        self.style: Style = decode_style(style_numbers)
        self.looks = looks
        head = head_vertices(shape, expression, style_numbers)
        if looks.hat is not None:
            _under_hat(head, style_numbers, looks)
        self.head = head
        self.albedo = mean_albedo(style_numbers) + (texture @ texture_basis().reshape(TEXTURE_DIM, -1)).reshape(-1, 3)
        self.worn = worn(identity, looks)
        hair, normal = hair_vertices(), vertex_normals(head)
        baked = 0.30 + 0.70 * baked_occlusion(self.style.cut)
        inside = np.isin(mesh.part, (MOUTH, TEETH, TONGUE)) | (mesh.follow >= 0)
        reached = np.where(inside, 0.10 + 0.95 * ambient(), ambient() * baked)
        growth = tangents(head[hair])
        rows = np.zeros((len(head), 17), np.float32)
        rows[:, _NORMAL], rows[:, _ALBEDO] = normal, self.albedo
        rows[:, 6:8], rows[:, 8] = mesh.canonical, np.abs(mesh.azimuth)
        rows[:, _AMBIENT], rows[:, _AZIMUTH], rows[:, _POSITION] = reached, mesh.azimuth, head
        rows[hair, _TANGENT], rows[hair, 8] = growth, to_tip(head[hair])
        self.rows, self.triangles = [rows], [mesh.triangles]
        self.parts, self.two_sided = [mesh.face_part], [mesh.two_sided]
        for piece in (self.worn.frame, self.worn.hat):
            if piece is not None:
                more = np.zeros((len(piece.vertices), 17), np.float32)
                more[:, _NORMAL], more[:, 6:8], more[:, _POSITION] = piece.normals(), piece.canonical, piece.vertices
                more[:, _AMBIENT] = 0.9
                self._add(more, piece.triangles, piece.part)
        self.layered = self.style.cut not in ('bald', 'buzz')
        is_hair = mesh.face_part == HAIR
        count = sum(map(len, self.triangles))
        self.solid = np.ones(count, bool)
        if self.layered:
            self.solid[: len(is_hair)] = ~is_hair
            self.hair = np.flatnonzero(is_hair)
            lifted = rows[hair].copy()
            lift = 0.005 + 0.015 * looks.frizz + 0.012 * (self.style.cut == 'curly')
            if looks.hat is not None:
                lift = lift * (rows[hair, 12] < hat_line(looks.hat, mesh.azimuth[hair]) - 0.1)[:, None]
            lifted[:, _POSITION] += lift * lifted[:, _NORMAL]
            back = np.zeros(len(head), np.int32)
            back[hair] = np.arange(len(hair))
            self.fuzz = count + np.arange(len(self.hair))
            self._add(lifted, back[mesh.triangles[self.hair]], HAIR)
            self.solid = np.concatenate([self.solid, np.zeros(len(self.hair), bool)])
        self.rows = np.concatenate(self.rows)
        self.triangles = np.concatenate(self.triangles)
        self.parts, self.two_sided = np.concatenate(self.parts), np.concatenate(self.two_sided)

    def _add(self, rows, triangles, part: int) -> None:
        self.triangles.append(triangles + sum(map(len, self.rows)))
        self.rows.append(rows)
        self.parts.append(np.full(len(triangles), part, self.parts[0].dtype))
        self.two_sided.append(np.ones(len(triangles), bool))

    def shadow(self, light: KeyLight) -> DepthMap:
        """Where the key light does not reach; the fuzz throws none, clear lenses neither."""
        points, triangles = self.rows[:, _POSITION], self.triangles[: len(self.triangles) - len(self._fuzz())]
        if self.worn.lenses is not None and self.looks.glasses.tint.mean() < 0.5:
            triangles = np.concatenate([triangles, self.worn.lenses.triangles + len(points)])
            points = np.concatenate([points, self.worn.lenses.vertices])
        return depth_map(points, triangles, light.direction, softness=light.softness)

    def _fuzz(self):
        return self.fuzz if self.layered else ()

    def nearest(self, label, side: int):
        """(flat sample [N] ascending, triangle [N], weights [N, 3], camera z [N]) of what is seen, hair strand by
        strand."""
        screen = project(to_world(self.rows[:, _POSITION]), label, side, side)
        if not self.layered:
            return visible(screen, self.triangles, side, side, cull=~self.two_sided)
        z = np.full(side * side, np.inf, np.float32)
        triangle = np.full(side * side, -1, np.int32)
        weights = np.empty((side * side, 3), np.float32)
        solid = np.flatnonzero(self.solid)
        # Where hair hangs, the inside of its shell is a layer of its own: it shows through the gaps of the outside.
        layers = [(solid, None, 1), (self.hair, hair_alpha, 1), (self.fuzz, fuzz_alpha, 1)]
        if self.style.cut in ('long', 'bob'):
            layers.insert(1, (self.hair, hair_alpha, -1))
        for index, alpha, order in layers:
            cull = ~self.two_sided[index] if alpha is None else True
            hit, found, weight, depth = visible(screen, self.triangles[index][:, ::order], side, side, cull=cull)
            found, weight = index[found], weight[:, ::order]
            if alpha is not None:
                nearer = np.flatnonzero(depth < z[hit])
                hit, found, weight, depth = hit[nearer], found[nearer], weight[nearer], depth[nearer]
                at = interpolate_flat(self.rows[:, _CANONICAL], self.triangles[found], weight)
                noise = strand_noise(at, self.style, self.looks)
                kept = np.flatnonzero(alpha(at, noise, self.looks))
                hit, found, weight, depth = hit[kept], found[kept], weight[kept], depth[kept]
            z[hit], triangle[hit], weights[hit] = depth, found, weight
        hit = np.flatnonzero(triangle >= 0)
        return hit, triangle[hit], weights[hit], z[hit]


def draw_samples(
    identity: np.ndarray,
    expression: np.ndarray,
    label: np.ndarray,
    gamma: np.ndarray,
    side: int,
    background,
    looks: Looks,
    light: KeyLight,
) -> Samples:
    """Shades ``side`` x ``side`` samples of a head; the arguments are those of ``render.render_head``."""
    scene = _Scene(identity, expression, looks)
    hits, face, weight, depth = scene.nearest(label, side)
    shadow = scene.shadow(light)
    deep = wrinkle_strengths(expression, looks)
    towards, stretch = rays(label, side)
    rgb = np.empty((side * side, 3), np.float32)
    rgb[:] = np.asarray(background, np.float32)
    cover, distance = np.zeros(side * side, np.float32), np.zeros(side * side, np.float32)
    parts = np.full(side * side, -1, np.int8)
    tone = skin_tone(scene.albedo)
    for first in range(0, len(hits), BLOCK):
        block = slice(first, first + BLOCK)
        hit, faces = hits[block], face[block]
        part = scene.parts[faces]
        samples = interpolate_flat(scene.rows, scene.triangles[faces], weight[block])
        view, normal = towards[hit], samples[:, _NORMAL]
        normal /= np.maximum(length(normal), 1e-6)[:, None]
        both = np.flatnonzero(scene.two_sided[faces])
        away = both[np.einsum('nd,nd->n', normal[both], view[both]) < 0]
        normal[away] *= -1
        colour = np.clip(samples[:, _ALBEDO], 0.01, 1)
        shine = _paint(colour, part, samples, scene, tone, deep)
        rgb[hit] = _shade(colour, part, samples, shine, view, gamma, light, shadow)
        cover[hit], distance[hit], parts[hit] = 1, depth[block] * stretch[hit], part
    if scene.worn.lenses is not None:
        z = np.full(side * side, np.inf, np.float32)
        z[hits] = depth
        _lenses(rgb, cover, distance, parts, z, scene, label, side, towards, stretch, light)
    return Samples(rgb, cover, distance, parts, scene.head)


def _paint(colour, part, samples, scene: _Scene, tone, deep) -> np.ndarray:
    """Paints the samples' albedo in place; returns how much they shine."""
    looks, style, canonical = scene.looks, scene.style, samples[:, _CANONICAL]
    paint_base(colour, part, canonical, style, tone)
    shine = paint_skin(colour, part, canonical, samples[:, _AZIMUTH], style, looks, deep)
    paint_moist(colour, part, canonical, looks)
    for number, painter in (
        (HAIR, lambda a, i: paint_hair(a, canonical[i], strand_noise(canonical[i], style, looks), style, looks)),
        (CLOTH, lambda a, i: paint_cloth(a, canonical[i], samples[i, _AZIMUTH], samples[i, _POSITION], style, looks)),
        (GLASSES, lambda a, i: paint_frame(a, canonical[i], looks.glasses, looks)),
        (HAT, lambda a, i: paint_hat(a, canonical[i], looks.hat, looks)),
    ):
        i = np.flatnonzero(part == number)
        if len(i):
            block = colour[i]
            painter(block, i)
            colour[i] = block
    np.clip(colour, 0.008, 1, out=colour)
    return shine


def _shade(colour, part, samples, shine, view, gamma, light: KeyLight, shadow: DepthMap) -> np.ndarray:
    """[N, 3] the light that the samples send to the camera; ``colour`` is used up."""
    normal, reached = samples[:, _NORMAL], samples[:, _AMBIENT, None]
    direction = light.direction.astype(np.float32)
    lit = shadow.lit(samples[:, _POSITION])
    facing = normal @ direction
    flesh = (part == SKIN) | (part == EAR)
    total = np.maximum(sh_light(normal, gamma), 0) * (reached * light.ambient.astype(np.float32))
    total += np.maximum(normal @ light.fill_direction.astype(np.float32), 0)[:, None] * (
        reached * light.fill.astype(np.float32)
    )
    wrap = np.where(flesh[:, None], _WRAP, np.float32(0.02))
    direct = np.maximum(facing[:, None] + wrap, 0) / (1 + wrap)
    key = light.colour.astype(np.float32)
    closed = np.where(np.isin(part, (MOUTH, TEETH, TONGUE)), samples[:, _AMBIENT], 1)  # no map sees these well
    direct *= (lit * closed)[:, None]
    total += direct * key
    colour *= total
    half = view + direction
    half /= np.maximum(length(half), 1e-6)[:, None]
    dot = np.clip(np.einsum('nd,nd->n', normal, half), 0, 1)
    wide = np.square(np.square(np.square(dot))) * dot * dot
    sharp = np.square(np.square(wide))
    rim = np.square(1 - np.clip(np.einsum('nd,nd->n', normal, view), 0, 1))
    glare = shine * (_WIDE[part] * wide + _SHARP[part] * sharp) * lit * (facing > 0)
    colour += glare[:, None] * (0.25 + key)
    colour += (0.10 * rim * rim * shine * flesh)[:, None] * reached * light.ambient.astype(np.float32)
    i = np.flatnonzero(part == EYE)
    if len(i):  # the wet surface mirrors the lamp and, faintly, the sky
        mirror = 2 * np.einsum('nd,nd->n', normal[i], view[i])[:, None] * normal[i] - view[i]
        lamp = dot[i] ** 180 * (0.35 + 0.65 * lit[i])
        sky = 0.05 * np.clip(mirror[:, 1], 0, 1) * samples[i, _AMBIENT]
        colour[i] += lamp[:, None] * (0.4 + 0.6 * key) + sky[:, None]
    i = np.flatnonzero(part == HAIR)
    if len(i):
        _strand_shine(colour, i, samples, half, lit, key)
    np.minimum(colour, 4, out=colour)
    bright = colour > 0.78  # highlights roll off like on film
    colour[bright] = 1 - 0.22 * np.exp((0.78 - colour[bright]) / 0.22)
    return np.maximum(colour, 0)


def _strand_shine(colour, i, samples, half, lit, key) -> None:
    """A band of light across the strands, where the half vector is at right angles to them."""
    tangent = samples[i, _TANGENT]
    along = np.einsum('nd,nd->n', tangent, half[i]) / np.maximum(length(tangent), 1e-6)
    across = np.sqrt(np.clip(1 - along * along, 0, 1))
    band = across**30 * np.clip(np.einsum('nd,nd->n', samples[i, _NORMAL], half[i]), 0, 1)
    colour[i] += (band * (0.15 + 0.85 * lit[i]))[:, None] * (0.05 + 0.8 * colour[i]) * (0.15 + key)


def _lenses(rgb, cover, distance, parts, z, scene: _Scene, label, side, towards, stretch, light: KeyLight) -> None:
    """Lays the lenses over what was drawn, in place: their tint, and what they mirror."""
    glasses, lenses = scene.looks.glasses, scene.worn.lenses
    screen = project(to_world(lenses.vertices), label, side, side)
    hit, found, weight, depth = visible(screen, lenses.triangles, side, side)
    front = np.flatnonzero(depth < z[hit])
    hit, found, weight, depth = hit[front], found[front], weight[front], depth[front]
    if not len(hit):
        return
    normal = interpolate_flat(lenses.normals(), lenses.triangles[found], weight)
    normal /= np.maximum(length(normal), 1e-6)[:, None]
    view = towards[hit]
    facing = np.einsum('nd,nd->n', normal, view)
    normal[facing < 0] *= -1
    facing = np.abs(facing)
    mirror = 2 * facing[:, None] * normal - view
    window = np.array([light.direction[0], 0.45 * light.direction[1], max(light.direction[2], 0.5)])
    window /= np.linalg.norm(window)
    x = mirror @ np.array([window[2], 0, -window[0]]) / np.hypot(window[0], window[2])
    y = mirror[:, 1] - window[1]
    size = 0.18 + 0.25 * scene.looks.offset[1]
    pane = np.clip((size - np.abs(x)) / 0.05, 0, 1) * np.clip((0.8 * size - np.abs(y)) / 0.05, 0, 1)
    pane *= np.clip((np.abs(x) - 0.012) / 0.01, 0.25, 1) * (mirror @ window > 0)
    sky = np.clip(0.35 + 0.65 * mirror[:, 1], 0, 1)
    fresnel = 0.04 + 0.7 * (1 - facing) ** 5
    glare = glasses.reflection * (0.42 * pane + 0.07 * sky) + 0.4 * fresnel * sky
    rgb[hit] = np.minimum(
        rgb[hit] * glasses.tint.astype(np.float32) + glare[:, None].astype(np.float32) * (0.5 + 0.5 * light.colour), 1
    )
    shows = np.flatnonzero((cover[hit] == 0) | (glasses.tint.mean() < 0.5))
    parts[hit[shows]], distance[hit[shows]] = GLASSES, depth[shows] * stretch[hit[shows]]
    cover[hit] = 1
