"""What happens to a rendered face before the landmark network sees it: crop, background, colour, light, things in
front.

The network is trained on rendered heads only and used on photographs, so everything that differs between the two and
can be imitated cheaply is varied widely: NumPy and OpenCV, a few milliseconds a picture, a function of the generator.
"""

from __future__ import annotations

import numpy as np

from avatar_jax.faces.base import EYE_IMAGE_LEFT, EYE_IMAGE_RIGHT
from avatar_jax.models.perception.face_net import CROP_SIDE, crop_matrix
from avatar_jax.ops.landmark_layouts import MIRROR
from avatar_jax.procedural.expressions import EXPRESSION_NAMES, mirror_expression


def example_or_empty(
    rng: np.random.Generator, data: dict[str, np.ndarray], index: int, side: int = CROP_SIDE, empty: float = 0.12
) -> dict[str, np.ndarray]:
    """``example`` with ``present`` = 1, or, in a share ``empty`` of the cases, a picture without a face in the middle
    (``present`` = 0): background, things, or a head far outside; landmarks, expression and angle then mean nothing."""
    if rng.random() >= empty:
        return {**example(rng, data, index, side), 'present': np.float32(1)}
    import cv2

    picture, cover = np.array(background(rng, data, side), np.float32), np.zeros((side, side), np.uint8)
    if rng.random() < 0.5:
        points = data['landmarks'][index].astype(np.float64)
        matrix = crop_matrix(points, side)
        away = rng.uniform(0, 2 * np.pi)
        matrix[:, 2] += side * rng.uniform(0.75, 1.0) * np.array([np.cos(away), np.sin(away)])
        image = cv2.warpAffine(data['rgb'][index], matrix, (side, side), borderValue=(255, 255, 255))
        cover = cv2.warpAffine(data['mask'][index], matrix, (side, side))
        alpha = cover[..., None].astype(np.float32) / 255
        picture = alpha * _recolour(rng, image.astype(np.float32) / 255) + (1 - alpha) * picture
    centre = np.full((68, 2), side / 2)
    picture = _camera(rng, _recolour(rng, _occlude(rng, picture.astype(np.float32), centre), 0.5))
    return {
        'rgb': picture,
        'mask': cover,
        'landmarks': np.full((68, 2), 0.5, np.float32),
        'expression': np.zeros(len(EXPRESSION_NAMES), np.float32),
        'angle': np.zeros(3, np.float32),
        'present': np.float32(0),
    }


def example(
    rng: np.random.Generator, data: dict[str, np.ndarray], index: int, side: int = CROP_SIDE
) -> dict[str, np.ndarray]:
    """One training example from sample ``index`` of ``data_pipelines.face_crops``.

    Args:
        rng: decides everything that varies.
        data: name -> [N, ...] arrays of ``face_crops.load_shards``.
        index: which head.
        side: of the picture that the network reads.

    Returns:
        rgb [side, side, 3] uint8, mask [side, side] uint8, landmarks [68, 2] in units of the side (0..1 inside),
        expression [64], angle [3] radians as seen in the turned crop.
    """
    import cv2

    rgb, mask = data['rgb'][index], data['mask'][index]
    points = data['landmarks'][index].astype(np.float64)
    expression, angle = data['expression'][index], data['angle'][index].astype(np.float64)
    matrix, turn = _placement(rng, points, side)
    # OpenCV has the centre of the first pixel at 0, the samples at 0.5.
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    image = cv2.warpAffine(rgb, shifted, (side, side), flags=cv2.INTER_LINEAR, borderValue=(255, 255, 255))
    cover = cv2.warpAffine(mask, shifted, (side, side), flags=cv2.INTER_LINEAR, borderValue=0)
    points = points @ matrix[:, :2].T + matrix[:, 2]
    angle = angle + [0.0, 0.0, turn]
    if rng.random() < 0.5:
        image, cover = image[:, ::-1], cover[:, ::-1]
        points = np.stack([side - points[:, 0], points[:, 1]], 1)[MIRROR]
        expression, angle = mirror_expression(expression), angle * [1, -1, -1]
    alpha = cover[..., None].astype(np.float32) / 255
    # The picture lies before white; near the edge of the head that white is taken out again.
    head = np.clip((image.astype(np.float32) / 255 - (1 - alpha)) / np.maximum(alpha, 0.05), 0, 1)
    head = _recolour(rng, _shade(rng, head))
    head = _decorate(rng, head, points)
    picture = alpha * head + (1 - alpha) * background(rng, data, side)
    picture = _occlude(rng, picture, points)
    picture = _camera(rng, _recolour(rng, picture, 0.5))
    return {
        'rgb': picture,
        'mask': np.ascontiguousarray(cover),
        'landmarks': (points / side).astype(np.float32),
        'expression': expression.astype(np.float32),
        'angle': angle.astype(np.float32),
    }


def rephotographed(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """A crop [side, side, 3] uint8 in other colours and through another camera, as examples of faces are."""
    return _camera(rng, _recolour(rng, _recolour(rng, picture.astype(np.float32) / 255), 0.5))


def _placement(rng: np.random.Generator, points: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """Crop matrix [2, 3] with errors as a detector makes them, and the roll in radians that it adds to the head."""
    matrix = crop_matrix(points, side)
    loose = rng.random() < 0.6  # a detector's box; else a crop from the landmarks of the frame before
    zoom = np.exp(np.clip(rng.normal(0, 0.14 if loose else 0.05), -0.3, 0.3))
    turn = np.clip(rng.normal(0, 0.28 if loose else 0.07), -0.7, 0.7)
    shift = np.clip(rng.normal(0, 0.06 if loose else 0.02, 2), -0.16, 0.16) * side
    cosine, sine = zoom * np.cos(turn), zoom * np.sin(turn)
    linear = np.array([[cosine, sine], [-sine, cosine]])  # counter-clockwise as seen, y points down
    middle = np.full(2, side / 2)
    jitter = np.concatenate([linear, (middle + shift - linear @ middle)[:, None]], 1)
    whole = np.concatenate([jitter[:, :2] @ matrix[:, :2], (jitter[:, :2] @ matrix[:, 2] + jitter[:, 2])[:, None]], 1)
    return whole, float(np.arctan2(-whole[1, 0], whole[0, 0]))


def _field(rng: np.random.Generator, side: int, cells: int, channels: int = 1) -> np.ndarray:
    """Smooth random field [side, side, channels] in 0..1."""
    import cv2

    coarse = rng.random((cells, cells, channels), np.float32)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC).reshape(side, side, channels)


def _shade(rng: np.random.Generator, head: np.ndarray) -> np.ndarray:
    """Uneven light: soft gradients, and in a third of the pictures the edge of a shadow."""
    side = head.shape[0]
    light = 1 + rng.uniform(0, 0.7) * (_field(rng, side, int(rng.integers(2, 5))) - 0.5)
    if rng.random() < 0.3:
        direction = rng.uniform(0, 2 * np.pi)
        ys, xs = np.mgrid[:side, :side].astype(np.float32) / side - 0.5
        distance = np.cos(direction) * xs + np.sin(direction) * ys + rng.uniform(-0.25, 0.25)
        edge = 1 / (1 + np.exp(-np.clip(distance * rng.choice([8.0, 25.0, 80.0]), -30, 30)))
        light = light * (1 - rng.uniform(0.2, 0.7) * edge[..., None])
    if rng.random() < 0.4:  # uneven skin
        light = light + rng.uniform(0, 0.12) * (_field(rng, side, int(rng.integers(12, 50))) - 0.5)
    return np.clip(head * light, 0, 1)


def _recolour(rng: np.random.Generator, picture: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Gain and gamma per channel, contrast, saturation."""
    gain = np.exp(strength * (rng.normal(0, 0.18) + rng.normal(0, 0.10, 3)))
    gamma = np.exp(strength * (rng.normal(0, 0.25) + rng.normal(0, 0.05, 3)))
    out = np.clip(picture * gain, 0, 1) ** gamma.astype(np.float32)
    gray = out @ np.float32([0.299, 0.587, 0.114])
    saturation = 0.0 if rng.random() < 0.12 * strength else np.clip(1 + strength * rng.normal(0, 0.3), 0.1, 1.8)
    out = gray[..., None] + saturation * (out - gray[..., None])
    contrast = np.exp(strength * rng.normal(-0.05, 0.2))
    return np.clip(0.5 + contrast * (out - 0.5) + strength * rng.normal(0, 0.05), 0, 1).astype(np.float32)


def background(rng: np.random.Generator, data: dict[str, np.ndarray], side: int) -> np.ndarray:
    """[side, side, 3] in 0..1: plain, gradients, textures, shapes, or another head out of focus."""
    import cv2

    kind = rng.choice(5, p=[0.15, 0.2, 0.25, 0.25, 0.15])
    first, second = rng.random((2, 3), np.float32)
    if kind == 0:
        return np.broadcast_to(first, (side, side, 3))
    if kind == 1:
        return first + (second - first) * _field(rng, side, int(rng.integers(2, 4)))
    if kind == 2:
        out = np.zeros((side, side, 3), np.float32)
        for cells in (3, 8, 24, side):
            out += rng.random() * _field(rng, side, cells, 3 if rng.random() < 0.7 else 1)
        return np.clip(out / max(out.max(), 1e-3) * rng.uniform(0.4, 1.0), 0, 1)
    if kind == 3:
        out = np.broadcast_to(first, (side, side, 3)).copy()
        _shapes(rng, out, int(rng.integers(4, 25)), 0.35)
        return cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 6.0))
    other = data['rgb'][rng.integers(len(data['rgb']))]
    zoom = rng.uniform(0.5, 1.5) * side / other.shape[0]
    move = np.array([[zoom, 0, rng.uniform(-0.6, 0.6) * side], [0, zoom, rng.uniform(-0.4, 0.4) * side]])
    out = cv2.warpAffine(other, move, (side, side), borderMode=cv2.BORDER_REPLICATE)
    return cv2.GaussianBlur(out.astype(np.float32) / 255 * (0.3 + 0.7 * first), (0, 0), rng.uniform(0.8, 4.0))


def _shapes(rng: np.random.Generator, canvas: np.ndarray, count: int, size: float) -> None:
    """Draws random ellipses, boxes and strokes into ``canvas``."""
    import cv2

    side = canvas.shape[0]
    for _ in range(count):
        colour = rng.random(3).tolist()
        x, y = rng.integers(-side // 8, side + side // 8, 2)
        w, h = (rng.uniform(0.02, size, 2) * side).astype(int) + 1
        kind = rng.integers(3)
        if kind == 0:
            cv2.ellipse(
                canvas, (int(x), int(y)), (int(w), int(h)), rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA
            )
        elif kind == 1:
            cv2.rectangle(canvas, (int(x), int(y)), (int(x + w), int(y + 2 * h)), colour, -1)
        else:
            x2, y2 = rng.integers(-side // 8, side + side // 8, 2)
            cv2.line(canvas, (int(x), int(y)), (int(x2), int(y2)), colour, int(rng.integers(1, 8)), cv2.LINE_AA)


def _decorate(rng: np.random.Generator, head: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Glasses, make-up and strands of hair on some heads."""
    import cv2

    left, right = points[EYE_IMAGE_LEFT].mean(0), points[EYE_IMAGE_RIGHT].mean(0)
    across = np.hypot(*(right - left))
    if rng.random() < 0.12 and across > 12:
        head, colour = head.copy(), (rng.random(3) * rng.choice([0.2, 1.0])).tolist()
        radii = (int(across * rng.uniform(0.30, 0.44)), int(across * rng.uniform(0.2, 0.4)))
        tilt, thickness = np.degrees(np.arctan2(*(right - left)[::-1])), int(rng.integers(1, 4))
        glass = head.copy()
        for eye, other in ((left, right), (right, left)):
            centre = tuple(int(v) for v in eye)
            cv2.ellipse(glass, centre, radii, tilt, 0, 360, rng.random(3).tolist(), -1, cv2.LINE_AA)
            outwards = eye + (eye - other) * 0.8
            cv2.line(head, centre, tuple(int(v) for v in outwards), colour, thickness, cv2.LINE_AA)
        head = head + rng.choice([0.0, 0.15, 0.3, 0.9], p=[0.5, 0.25, 0.15, 0.1]) * (glass - head)
        for eye in (left, right):
            cv2.ellipse(head, tuple(int(v) for v in eye), radii, tilt, 0, 360, colour, thickness, cv2.LINE_AA)
        cv2.line(
            head,
            tuple(int(v) for v in left + 0.4 * (right - left)),
            tuple(int(v) for v in left + 0.6 * (right - left)),
            colour,
            thickness,
            cv2.LINE_AA,
        )
    if rng.random() < 0.2:
        head, colour = head.copy(), rng.random(3) * rng.choice([0.3, 0.9])
        start = points[rng.integers(17, 27)] - [0, across * rng.uniform(0.2, 1.2)]
        for _ in range(int(rng.integers(3, 30))):
            place = start + rng.normal(0, 0.15 * max(across, 12), 2)
            bend = place + np.array([rng.normal(0, 0.5), rng.uniform(0.2, 2.0)]) * max(across, 12)
            middle = (place + bend) / 2 + rng.normal(0, 0.2 * max(across, 12), 2)
            curve = np.stack([place, middle, bend]).astype(np.int32)[None]
            shade = np.clip(colour * rng.uniform(0.7, 1.3), 0, 1).tolist()
            cv2.polylines(head, curve, False, shade, int(rng.integers(1, 3)), cv2.LINE_AA)
    return head


def _occlude(rng: np.random.Generator, picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Hands, objects and the edge of the photograph in front of a third of the faces."""
    import cv2

    side = picture.shape[0]
    if rng.random() < 0.22:
        picture, shape = picture.copy(), np.zeros((side, side), np.float32)
        x, y = rng.uniform(0, side, 2)
        angle, length, width = rng.uniform(0, 360), rng.uniform(0.12, 0.5) * side, rng.uniform(0.05, 0.2) * side
        cv2.ellipse(shape, (int(x), int(y)), (int(length), int(width)), angle, 0, 360, 1.0, -1, cv2.LINE_AA)
        for _ in range(int(rng.integers(0, 4))):  # fingers
            x2, y2 = x + rng.normal(0, width), y + rng.normal(0, width)
            cv2.ellipse(
                shape,
                (int(x2), int(y2)),
                (int(length * 0.8), int(width * 0.3) + 1),
                angle + rng.normal(0, 25),
                0,
                360,
                1.0,
                -1,
                cv2.LINE_AA,
            )
        skin = picture[int(np.clip(points[30, 1], 0, side - 1)), int(np.clip(points[30, 0], 0, side - 1))]
        colour = skin * rng.uniform(0.7, 1.2, 3) if rng.random() < 0.6 else rng.random(3)
        texture = np.clip(colour * (0.7 + 0.6 * _field(rng, side, int(rng.integers(2, 30)))), 0, 1)
        picture = picture + shape[..., None] * (texture - picture)
    if rng.random() < 0.1:
        picture = picture.copy()
        _shapes(rng, picture, int(rng.integers(1, 4)), 0.2)
    if rng.random() < 0.1:
        edge = int(rng.uniform(0.05, 0.3) * side)
        picture = np.rot90(picture, k := int(rng.integers(4))).copy()
        picture[:edge] = picture[edge] if rng.random() < 0.5 else rng.choice([0.0, 1.0])
        picture = np.rot90(picture, -k)
    return picture


def _camera(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Sharpness, resolution, noise and compression: uint8 [side, side, 3]."""
    import cv2

    side = picture.shape[0]
    picture = np.ascontiguousarray(picture, np.float32)
    if rng.random() < 0.5:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.8))
    if rng.random() < 0.25:
        small = max(24, int(side / rng.uniform(1.2, 3.5)))
        picture = cv2.resize(
            cv2.resize(picture, (small, small), interpolation=cv2.INTER_AREA),
            (side, side),
            interpolation=int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_NEAREST])),
        )
    if rng.random() < 0.15:
        picture = picture + rng.uniform(0.3, 1.2) * (picture - cv2.GaussianBlur(picture, (0, 0), 1.5))
    if rng.random() < 0.5:
        noise = rng.standard_normal((side, side, 3 if rng.random() < 0.5 else 1), np.float32)
        picture = picture + rng.uniform(0, 0.07) * noise
    out = np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.06:
        out = cv2.medianBlur(out, 5)  # brush strokes
    if rng.random() < 0.4:
        out = cv2.imdecode(cv2.imencode('.jpg', out, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 95))])[1], 1)
    return out
