"""Scores of methods that learn from minutes of one person's video: the last part of it is not seen, and compared.

An avatar is made of the first part. Each way in which it can be driven (``Method.ways``) then makes frames of the last
part from their own signals and cameras. Groups of scores:

| group | what is compared with the true frames |
|---|---|
| ``picture``, ``coefficients``, ``sound``, ... | what the avatar shows, by what drives it |
| ``mean_frame`` | baseline: the mean of the frames that it was trained on |
| ``one_frame`` | baseline: an avatar of the best training frame by the default method, driven by the coefficients |
| ``gain_...`` | each way minus the baselines |
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from avatar_jax.driving.signals import make_drive
from avatar_jax.errors import UserError
from avatar_jax.eval import faces
from avatar_jax.eval.cases import TrueViews
from avatar_jax.eval.estimators import Estimators
from avatar_jax.eval.evaluation import Subject, subject
from avatar_jax.eval.options import ProtocolConfig
from avatar_jax.eval.protocols import CaseResult, network_scores
from avatar_jax.eval.statistics import pearson
from avatar_jax.faces.camera_labels import pose_from_label
from avatar_jax.io.sound import SoundTrack
from avatar_jax.methods.base import Source
from avatar_jax.methods.model import Model, choose_model
from avatar_jax.ops import image_metrics as image
from avatar_jax.ops.windows import windows
from avatar_jax.options import flag, option_fields
from avatar_jax.types import Avatar, Camera, Drive, Motion, Portrait

if TYPE_CHECKING:
    from avatar_jax.losses.perception import PerceptionBank

MEAN_OF = 200  # training frames at most, for the mean frame
ONE_FRAME = 'one_frame'


@dataclass(frozen=True)
class VideoCase:
    """One person's video.

    Attributes:
        name: for reports.
        source: the part that an avatar is made of.
        motion: of the F frames of the unseen part. labels: [F, 25]. pictures: F aligned crops.
        sound: file with the sound of the unseen part, which begins at ``start`` seconds; '': none.
        chosen: [T] numbers of the unseen frames that are compared.
        truth: [T, H, W, 3] in [-1, 1] at those. mask: [T, H, W] head coverage 0..1, or None.
        closed, opened: [T, H, W, 3] the same with the mouth closed and wide open, or None.
        landmarks: [T, 68, 2] pixels, or None.
    """

    name: str
    source: Source
    motion: Motion
    labels: np.ndarray
    pictures: Sequence[np.ndarray]
    sound: str
    start: float
    chosen: np.ndarray
    truth: np.ndarray
    mask: np.ndarray | None = None
    closed: np.ndarray | None = None
    opened: np.ndarray | None = None
    landmarks: np.ndarray | None = None


def measure_video(
    case: VideoCase,
    model: Model,
    options: Mapping[str, Any],
    bank: PerceptionBank | None,
    on_step: Callable[..., None],
    one: Model | None = None,
    estimators: Estimators | None = None,
) -> CaseResult:
    """Makes the avatar and scores it; see the module.

    Args:
        options: of the method's ``build``. bank: networks of its losses.
        one: model of the baseline ``one_frame``; None leaves it out.
        estimators: networks for the scores that need one; without, those are ``unavailable``.

    Raises:
        UserError: of ``build``, or the video lacks what drives the avatar.
    """
    built = model.build(case.source, bank=bank, on_step=on_step, **{**model.method.evaluation_options, **options})
    result = CaseResult()
    result.pictures['driven_truth'] = case.truth
    _control(result, 'truth', case.truth, case)
    ways = _ways(model, built.avatar)
    for name, avatar in ways.items():
        drive = _drive(case, model.of(avatar)).frames(case.chosen)
        _score(result, name, model.frames(avatar, drive, case.labels[case.chosen]).rgb, case)
    first = best_frame(case.source)
    source = _views_of(case.source.portraits[first])
    count = len(case.source.portraits)
    spread = np.linspace(0, count - 1, min(count, MEAN_OF)).round().astype(int)
    mean = sum(np.asarray(_picture(case.source.portraits[int(i)].image), np.float64) for i in spread) / len(spread)
    _score(result, 'mean_frame', np.broadcast_to(mean.astype(np.float32), case.truth.shape), case)
    baselines = ['mean_frame']
    if one is not None:
        avatar = one.build(case.source.portraits[first], **one.method.evaluation_options).avatar
        drive = one.drive(case.motion).frames(case.chosen)
        _score(result, ONE_FRAME, one.frames(avatar, drive, case.labels[case.chosen]).rgb, case)
        baselines.append(ONE_FRAME)
    views = TrueViews(
        case.motion.windows()[case.chosen], case.labels[case.chosen], case.truth, case.mask, case.landmarks
    )
    for name in (*ways, *baselines):
        shown, known = result.pictures[name], Estimators() if estimators is None else estimators
        found, gone = network_scores(shown, views, source, case.motion.basis, known)
        result.scores |= {f'{name}.{k}': np.mean(v) for k, v in found.items()}
        result.unavailable |= {f'{name}.{k}': v for k, v in gone.items()}
    score = 'psnr' if case.mask is None else 'psnr_head'
    for name in ways:
        for baseline in baselines:
            gain = result.scores[f'{name}.{score}'] - result.scores[f'{baseline}.{score}']
            result.scores[f'gain_{name}.{score}_over_{baseline}'] = gain
    result.pictures['driven'] = result.pictures[next(iter(ways))]
    result.scores = {k: float(v) for k, v in result.scores.items()}
    return result


def check_protocol(protocol: ProtocolConfig, measured: Path | None) -> None:
    """Refuses what says nothing about people who are learned from a video.

    Args:
        measured: folder of what other programs measured, or None.

    Raises:
        UserError: names the option.
    """
    for name, field in option_fields(ProtocolConfig).items():
        if name != 'frames' and getattr(protocol, name) != field.default:
            option = field.metadata.get('flag', flag(name))
            raise UserError(f'{option}: says nothing about people who are learned from a video; leave it out')
    if measured is not None:
        raise UserError('--measured: is not known of people who are learned from a video; leave it out')


def subject_of(
    model: Model,
    options: Mapping[str, Any],
    bank: PerceptionBank,
    protocol: ProtocolConfig,
    measured: Path | None,
    out: Path,
    note: Callable[[str], None],
    estimators: Estimators | None = None,
) -> Subject:
    """A model as something to be measured, in the way that its method asks for: by pictures, or by videos.

    Args:
        measured: folder of what other programs measured, or None. options, bank, out, note, estimators: as of
            ``measuring``.

    Raises:
        UserError: an option that says nothing about people who are learned from a video.
    """
    found = subject(model, bank, protocol.against_mean, **options)
    if model.method.sources != ('video',):
        return found
    check_protocol(protocol, measured)
    return replace(found, measure=measuring(model, options, bank, out, note, estimators))


def measuring(
    model: Model,
    options: Mapping[str, Any],
    bank: PerceptionBank,
    out: Path,
    note: Callable[[str], None],
    estimators: Estimators | None = None,
) -> Callable[..., CaseResult]:
    """(case, on_step) -> the scores of the avatar of a video, beside those of an avatar of one frame.

    Args:
        options: of the method's ``build``. bank: networks of its losses.
        out: folder in which trainings keep their state until they are measured. note: called with a sentence where
            there is no comparison with an avatar of one frame.
        estimators: networks for the scores that need one.
    """
    one = choose_model(None, None)
    if reason := check_baseline(model, one):
        note(f'no comparison with an avatar of one frame: {reason}')
        one = None

    def measure(case: VideoCase, on_step: Callable[[int], None]) -> CaseResult:
        work = str(out / 'training' / case.name)
        case = replace(case, source=replace(case.source, work=work))
        found = measure_video(case, model, options, bank, lambda done, **_: on_step(done), one, estimators)
        shutil.rmtree(work, ignore_errors=True)  # measured: nothing is left to go on with
        return found

    return measure


def check_baseline(model: Model, one: Model) -> str:
    """Why the model of one frame cannot be compared; '' where it can."""
    for name in ('img_resolution', 'basis', 'label_mode'):
        ours, theirs = getattr(model.config, name), getattr(one.config, name)
        if ours != theirs:
            return f'{name} is {ours!r}, that of {one.method.title} {theirs!r}'
    return ''


def best_frame(source: Source) -> int:
    """A frame that looks ahead with a usual expression: what one would choose as a portrait."""
    rows = [
        np.concatenate([np.zeros(n) if v is None else np.asarray(v) for v, n in ((p.angle, 3), (p.expression, 1))])
        for p in source.portraits
    ]
    angles, expressions = np.split(np.stack(rows), [3], 1)
    unusual = np.abs(expressions - np.median(expressions, 0)).sum(1)
    turned = np.abs(angles[:, 1]) + np.abs(angles[:, 0] - np.median(angles[:, 0]))
    return int(np.argmin(unusual / max(np.median(unusual), 1e-9) + turned / 0.1))


def _views_of(portrait: Portrait) -> TrueViews:
    """A picture that the avatar is made of."""
    expression = np.zeros((1, 70), np.float32)
    if portrait.expression is not None:
        known = np.asarray(portrait.expression, np.float32)[:64]
        expression[:, : len(known)] = known
    marks = None if portrait.landmarks is None else np.asarray(portrait.landmarks)[None]
    label = np.asarray(portrait.camera.label, np.float32)[None]
    return TrueViews(windows(expression), label, _picture(portrait.image)[None], None, marks)


def _ways(model: Model, avatar: Avatar) -> dict[str, Avatar]:
    config = model.of(avatar).config
    if model.method.ways is None:
        return {'driven_last': avatar}
    return {name: avatar.replace(config=own) for name, own in model.method.ways(config).items()}


def _drive(case: VideoCase, model: Model) -> Drive:
    parts: dict[str, Any] = {'motion': case.motion, 'pictures': case.pictures}
    track = SoundTrack(case.sound, case.start) if case.sound else None
    try:
        return make_drive(model.method, model.config, parts | {'sound': track}, case.motion.fps, case.name)
    finally:
        if track is not None:
            track.close()


def _picture(value: Any) -> np.ndarray:
    value = np.asarray(value)
    return value.astype(np.float32) / 127.5 - 1 if value.dtype == np.uint8 else value


@jax.jit
def _frame_scores(rgb: jax.Array, truth: jax.Array, mask: jax.Array | None) -> dict[str, jax.Array]:
    ours, truth = image.to_unit(rgb), image.to_unit(truth)
    found = {'psnr': image.psnr(ours, truth), 'ssim': image.ssim(ours, truth)}
    return found if mask is None else found | {'psnr_head': image.psnr(ours, truth, mask=mask)}


def _score(result: CaseResult, group: str, rgb: np.ndarray, case: VideoCase) -> None:
    rgb = np.asarray(rgb)
    if rgb.shape != case.truth.shape:
        raise UserError(f'{case.name}: has frames of {case.truth.shape[1]} pixels, the avatar of {rgb.shape[1]}')
    result.pictures[group] = rgb
    for name, values in _frame_scores(rgb, case.truth, case.mask).items():
        result.scores[f'{group}.{name}'] = np.mean(values)
    _control(result, group, rgb, case)


def _control(result: CaseResult, group: str, rgb: np.ndarray, case: VideoCase) -> None:
    """How far the mouth is open in each picture, and the correlation with the true pictures."""
    if case.closed is None or case.opened is None or case.landmarks is None:
        if group == 'truth':
            result.unavailable['mouth_correlation'] = 'needs pictures of the head with a closed and an open mouth'
        return
    box = faces.region_boxes(case.landmarks, rgb.shape[1])['mouth']
    opening = np.asarray(faces.response(rgb, case.closed, case.opened, box))
    result.frames[f'{group}.mouth_opening'] = opening
    if group not in ('truth', 'mean_frame'):
        result.scores[f'{group}.mouth_correlation'] = pearson(opening, result.frames['truth.mouth_opening'])


class LabelledVideo(Protocol):
    """Frames of one person: bytes, labels [T,25], signals by name (``coefficients`` [T,P] of a basis, or not)."""

    pictures: Sequence[np.ndarray]
    labels: np.ndarray
    signals: Mapping[str, np.ndarray]
    basis: str


class FramePortraits(Sequence):
    """Portraits of some frames of a video with labels, coefficients and pictures, read when asked for.

    Args:
        video: ``pictures`` (bytes), ``labels`` [T, 25], ``signals['coefficients']`` [T, P] or not, ``basis``.
        numbers: of the frames.
    """

    def __init__(self, video: LabelledVideo, numbers: np.ndarray):
        self.video, self.numbers = video, numbers
        self.angle, self.translation = (np.asarray(x, np.float32) for x in pose_from_label(video.labels[numbers]))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Portrait:
        n, known = int(self.numbers[index]), self.video.signals.get('coefficients')
        return Portrait(
            image=_picture(self.video.pictures[n]),
            camera=Camera.from_label(self.video.labels[n]),
            expression=None if known is None else known[n],
            angle=self.angle[index],
            translation=self.translation[index],
            basis='' if known is None else self.video.basis,
            source=f'{self.video.name}, frame {n}',
        )
