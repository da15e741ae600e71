"""Bringing a photograph into the frame that a network expects, from five or 68 landmarks.

* ``align``: the five-point alignment of the coefficient regressor (224) and of EG3D crops (1024 -> 700 -> 512);
* ``recognition_matrix``: the similarity transform to the 112 x 112 face-recognition template;
* ``in_the_wild_crop``: the oriented quad crop with which FFHQ-style data sets are made.

Images are uint8 [H, W, 3] arrays. Landmarks are (x, y) pixels with y **down**, image left to right, unless a
docstring says otherwise. Resampling uses Pillow, as the data sets were made.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.ops.warp import similarity_transform

# Left eye, right eye, nose tip, left and right mouth corner, as seen in the picture; decimetres, y up, z to the viewer.
STANDARD_POINTS = np.array(
    [
        [-0.31148657, 0.29036078, 0.13377953],
        [0.30979887, 0.28972036, 0.13179526],
        [0.00325350, -0.04617932, 0.55244243],
        [-0.25216928, -0.38133916, 0.22405732],
        [0.24846620, -0.38128236, 0.22235769],
    ],
    np.float32,
)
RECOGNITION_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)
REGRESSOR_SIZE, REGRESSOR_RESCALE = 224, 102.0
EG3D_SIZE, EG3D_RESCALE, EG3D_CROP, EG3D_OUTPUT = 1024, 300.0, 700, 512
MAX_RESIZED_PIXELS = 64_000_000  # larger enlargements are cut out before resizing


@dataclass(frozen=True)
class Aligned:
    """An aligned picture and how it was made."""

    image: np.ndarray  # uint8 [T, T, 3], zeros outside the source picture
    landmarks: np.ndarray  # [5 or 68, 2] pixels of the aligned picture, y **up**
    trans_params: np.ndarray  # (w0, h0, scale, t_x, t_y) float64


@dataclass(frozen=True)
class PoseFit:
    """Scaled-orthographic camera fitted to five points."""

    translation: np.ndarray  # [2] pixels, y up
    scale: float  # pixels per decimetre
    residual: float  # decimetres, rms distance of the points from the nearest rigid pose; faces give about 0.05


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Eye centres (mean of the two corners), nose tip and mouth corners: [..., 68, 2] (or 5 kept) -> [..., 5, 2]."""
    lm = np.asarray(landmarks)
    if lm.shape[-2:] == (5, 2):
        return lm
    if lm.shape[-2:] != (68, 2):
        raise ValueError(f'expected 5 or 68 landmarks (x, y), got shape {lm.shape}')
    left, right = (lm[..., 36, :] + lm[..., 39, :]) / 2, (lm[..., 42, :] + lm[..., 45, :]) / 2
    return np.stack([left, right, lm[..., 30, :], lm[..., 48, :], lm[..., 54, :]], axis=-2)


def five_points_3d(landmarks: np.ndarray) -> np.ndarray:
    """The same reduction for 3-D landmarks: [68, 3] -> [5, 3]."""
    lm = np.asarray(landmarks)
    return np.stack([(lm[36] + lm[39]) / 2, (lm[42] + lm[45]) / 2, lm[30], lm[48], lm[54]])


def solve_pose(points_up: np.ndarray, standard: np.ndarray = STANDARD_POINTS) -> PoseFit:
    """Least-squares affine camera for five points with y up (minimum norm if singular)."""
    points = np.asarray(points_up, np.float64)
    rows = np.concatenate([np.asarray(standard, np.float64), np.ones((len(standard), 1))], 1)
    k = np.linalg.lstsq(rows, points, rcond=None)[0]  # [4, 2]: the two image axes are independent
    scale = (np.linalg.norm(k[:3, 0]) + np.linalg.norm(k[:3, 1])) / 2
    # Five points hardly constrain an affine camera, so its own residual says little: judge the nearest rigid one.
    u, singular, v = np.linalg.svd(k[:3], full_matrices=False)
    rigid = np.concatenate([singular.mean() * u @ v, k[3:]])
    error = np.sqrt(((rows @ rigid - points) ** 2).sum(-1).mean())
    residual = error / scale if scale > 0 else np.inf
    return PoseFit(translation=k[3], scale=float(scale), residual=float(residual))


def align(
    image: np.ndarray,
    landmarks: np.ndarray,
    target_size: int = REGRESSOR_SIZE,
    rescale_factor: float = REGRESSOR_RESCALE,
    resample: str = 'bicubic',
    standard: np.ndarray = STANDARD_POINTS,
) -> Aligned:
    """Scales and crops a picture so that the face has a standard size and place (no rotation).

    Args:
        image: uint8 [H, W, 3].
        landmarks: [5, 2] or [68, 2] pixels, y down.
        target_size: side of the result.
        rescale_factor: pixels per decimetre in the result.
        resample: 'bicubic' (regressor) or 'lanczos' (HFA-GP's copy), antialiased.
        standard: five 3-D points to fit.

    Returns:
        ``Aligned``.

    Raises:
        ValueError: the landmarks have no extent, or are not finite.
    """
    image = np.asarray(image)
    h0, w0 = image.shape[:2]
    up = np.array(landmarks, np.float64)
    up[..., 1] = h0 - 1 - up[..., 1]
    five = five_points(up)
    if not np.ptp(five, axis=0).max() >= 1:
        raise ValueError('the landmarks lie within one pixel: no face size can be measured')
    fit = solve_pose(five, standard)
    scale, (tx, ty) = rescale_factor / fit.scale, fit.translation
    width, height = int(w0 * scale), int(h0 * scale)
    left = int(width / 2 - target_size / 2 + (tx - w0 / 2) * scale)
    top = int(height / 2 - target_size / 2 + (h0 / 2 - ty) * scale)
    cropped = _resize_and_crop(image, (width, height), (left, top), target_size, resample)
    moved = np.stack(
        [
            (up[:, 0] - tx + w0 / 2) * scale - (width / 2 - target_size / 2),
            (up[:, 1] - ty + h0 / 2) * scale - (height / 2 - target_size / 2),
        ],
        axis=1,
    )
    return Aligned(cropped, moved.astype(np.float32), np.array([w0, h0, scale, tx, ty], np.float64))


def eg3d_crop(
    image: np.ndarray,
    landmarks: np.ndarray,
    size: int = EG3D_SIZE,
    rescale_factor: float = EG3D_RESCALE,
    crop: int = EG3D_CROP,
    output: int = EG3D_OUTPUT,
) -> tuple[np.ndarray, Aligned]:
    """The 512 x 512 picture that an FFHQ generator was trained on.

    Args:
        image: uint8 [H, W, 3].
        landmarks: [5, 2] or [68, 2] pixels, y down.
        size, rescale_factor: of the alignment.
        crop: side of its centre that is kept.
        output: side of the result.

    Returns:
        (uint8 [512, 512, 3], the 1024 x 1024 alignment it is the centre of).
    """
    from PIL import Image

    aligned = align(image, landmarks, size, rescale_factor)
    box = eg3d_crop_box(size, crop)
    center = aligned.image[box[1] : box[3], box[0] : box[2]]
    result = Image.fromarray(center).resize((output, output), Image.Resampling.LANCZOS)
    return np.asarray(result), aligned


def eg3d_crop_box(size: int = EG3D_SIZE, crop: int = EG3D_CROP) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the centre crop."""
    start = int(size / 2 - crop / 2)
    return start, start, start + crop, start + crop


def aligned_to_eg3d(landmarks_up: np.ndarray) -> np.ndarray:
    """Landmarks of the 1024 alignment (y up) to pixels of the 512 picture (y down, integer pixel centres)."""
    points = np.array(landmarks_up, np.float64)
    points[..., 1] = EG3D_SIZE - 1 - points[..., 1]
    start = eg3d_crop_box()[0]
    return ((points - start + 0.5) * (EG3D_OUTPUT / EG3D_CROP) - 0.5).astype(np.float32)


def recognition_matrix(landmarks_up: np.ndarray | jax.Array, height: int) -> jax.Array:
    """Similarity transform to the 112 x 112 recognition template.

    Args:
        landmarks_up: [..., 5, 2] or [..., 68, 2] pixels with y up (as ``Aligned`` and the face models give them).
        height: picture height, to flip y.

    Returns:
        [..., 2, 3] from picture pixels (y down) to template pixels; the identity where the points coincide.
    """
    points = five_points(np.asarray(landmarks_up, np.float32)).astype(np.float32)
    points = np.stack([points[..., 0], height - 1 - points[..., 1]], -1)
    return template_matrix(points)


def template_matrix(points: np.ndarray | jax.Array) -> jax.Array:
    """Similarity [..., 2, 3] from five points [..., 5, 2] (y down) to the recognition template; identity if
    singular.
    """
    matrix = similarity_transform(jnp.asarray(points), jnp.asarray(RECOGNITION_TEMPLATE))
    ok = jnp.isfinite(matrix).all((-2, -1), keepdims=True)
    return jnp.where(ok, matrix, jnp.eye(2, 3, dtype=matrix.dtype))


def ffhq_quad(landmarks: np.ndarray, enlarge: float = 1.8) -> np.ndarray:
    """Corners of the oriented square that FFHQ-style crops cut out.

    Args:
        landmarks: [5, 2] or [68, 2], y down. With 68 the eye centres are means of all six eye points.
        enlarge: 1 is FFHQ's own crop; EG3D's in-the-wild images use 1.8.

    Returns:
        [4, 2] pixels: upper left, lower left, lower right, upper right of the crop.

    Raises:
        ValueError: the landmarks have no extent.
    """
    lm = np.asarray(landmarks, np.float64)
    if lm.shape == (68, 2):
        left, right, corners = lm[36:42].mean(0), lm[42:48].mean(0), lm[[48, 54]]
    else:
        left, right, corners = five_points(lm)[0], five_points(lm)[1], five_points(lm)[3:]
    eyes, across = (left + right) / 2, right - left
    down = corners.mean(0) - eyes
    x = across - np.array([-down[1], down[0]])
    length = np.hypot(*x)
    if not length > 0:
        raise ValueError('the landmarks have no extent: no face size can be measured')
    x = x / length * enlarge * max(2.0 * np.hypot(*across), 1.8 * np.hypot(*down))
    y = np.array([-x[1], x[0]])
    center = eyes + 0.1 * down
    return np.stack([center - x - y, center - x + y, center + x + y, center + x - y])


def in_the_wild_crop(
    image: np.ndarray, landmarks: np.ndarray, output_size: int = 1500, enlarge: float = 1.8, transform_size: int = 4096
) -> np.ndarray:
    """Cuts the oriented square of ``ffhq_quad`` out of a photograph, continuing the picture where it ends.

    Outside the photograph the picture is mirrored, increasingly blurred and drawn towards its median colour.

    Args:
        image: uint8 [H, W, 3].
        landmarks: [5, 2] or [68, 2], y down.
        output_size: side of the result.
        enlarge: see ``ffhq_quad``.
        transform_size: side of the intermediate picture; the result is its antialiased reduction.

    Returns:
        uint8 [output_size, output_size, 3].
    """
    from PIL import Image

    image = np.asarray(image)
    quad = ffhq_quad(landmarks, enlarge)
    side = float(np.hypot(*(quad[3] - quad[0])))
    shrink = int(side / output_size / 2)
    if shrink > 1:
        height, width = round(image.shape[0] / shrink), round(image.shape[1] / shrink)
        factor = np.array([width / image.shape[1], height / image.shape[0]])
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
        quad, side = quad * factor, side / shrink
    image, quad = _crop_to_quad(image, quad, margin=max(round(side * 0.1), 3))
    image, quad = _continue_outside(image, quad, side)
    transformed = Image.fromarray(image).transform(
        (transform_size, transform_size),
        Image.Transform.QUAD,
        (quad + 0.5).flatten().tolist(),
        Image.Resampling.BILINEAR,
    )
    if output_size != transform_size:
        transformed = transformed.resize((output_size, output_size), Image.Resampling.LANCZOS)
    return np.asarray(transformed)


def _crop_to_quad(image: np.ndarray, quad: np.ndarray, margin: int) -> tuple[np.ndarray, np.ndarray]:
    low = np.clip(np.floor(quad.min(0)).astype(int) - margin, 0, np.array(image.shape[1::-1]) - 1)
    high = np.clip(np.ceil(quad.max(0)).astype(int) + margin, low + 1, image.shape[1::-1])
    return image[low[1] : high[1], low[0] : high[0]], quad - low


def _continue_outside(image: np.ndarray, quad: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Pads so that the quad fits: reflection that fades, over 30 % of the crop, into blur and the median colour."""
    from PIL import Image, ImageFilter

    size = np.array(image.shape[1::-1])
    before = np.maximum(np.ceil(-quad.min(0)).astype(int) + 2, 0)
    after = np.maximum(np.ceil(quad.max(0)).astype(int) + 2 - size, 0)
    if not (before.any() or after.any()):
        return image, quad
    # 'symmetric' repeats as often as needed, also for padding wider than the picture.
    pads = ((before[1], after[1]), (before[0], after[0]), (0, 0))
    padded = np.pad(image, pads, mode='symmetric' if min(size) < 2 else 'reflect')

    def distance(length, lead, total):
        position = np.arange(total) - lead
        return np.maximum(np.maximum(-position, position - (length - 1)), 0)

    dx = distance(size[0], before[0], padded.shape[1])[None, :]
    dy = distance(size[1], before[1], padded.shape[0])[:, None]
    fade = np.clip(np.maximum(dx, dy) / max(0.3 * side, 1.0), 0.0, 1.0)[..., None]
    blurred = np.asarray(Image.fromarray(padded).filter(ImageFilter.GaussianBlur(0.02 * side)), np.float32)
    mixed = padded + (blurred - padded) * np.clip(3 * fade + (fade > 0), 0.0, 1.0)
    mixed = mixed + (np.median(image, axis=(0, 1)) - mixed) * fade
    return np.rint(mixed).clip(0, 255).astype(np.uint8), quad + before


def _resize_and_crop(image, size, corner, target, resample) -> np.ndarray:
    """Resizes to ``size`` and cuts out ``target`` squared at ``corner``, zeros outside."""
    from PIL import Image

    filters = {'bicubic': Image.Resampling.BICUBIC, 'lanczos': Image.Resampling.LANCZOS}
    if resample not in filters:
        raise ValueError(f"resample='{resample}': choose 'bicubic' or 'lanczos'")
    (width, height), (left, top) = size, corner
    picture = Image.fromarray(image)
    result = np.zeros((target, target, image.shape[2]), np.uint8)
    x0, x1, y0, y1 = max(left, 0), min(left + target, width), max(top, 0), min(top + target, height)
    if x1 <= x0 or y1 <= y0:
        return result
    if width * height <= MAX_RESIZED_PIXELS:
        part = np.asarray(picture.resize((width, height), filters[resample]))[y0:y1, x0:x1]
    else:  # a tiny face in a large picture: resize only what the crop shows
        fx, fy = image.shape[1] / width, image.shape[0] / height
        part = np.asarray(
            picture.resize((x1 - x0, y1 - y0), filters[resample], box=(x0 * fx, y0 * fy, x1 * fx, y1 * fy))
        )
    result[y0 - top : y1 - top, x0 - left : x1 - left] = part
    return result
