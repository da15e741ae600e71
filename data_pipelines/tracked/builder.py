"""TFDS builders of real data sets: one tracked frame per record, the features of the procedural heads, no TensorFlow
needed.

The records, their order and the clip table beside them are those of ``data_pipelines.heads``, so the same sources and
the same pair pipeline read them. What a tracker does not measure is zero: ``identity`` holds 80 shape and 80 albedo
numbers and no style. Clips that cannot be used are skipped and listed in ``skipped.json``.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from avatar_jax.errors import UserError
from avatar_jax.io.atomic import write_json
from avatar_jax.ops.coefficients import SLICES
from avatar_jax.progress import Progress
from avatar_jax.track.measure import Measures, default_tracker
from data_pipelines.frame_features import frame_features
from data_pipelines.tables import TABLE_NAME
from data_pipelines.tracked.archive import Options, TrackedClip, archive_path, finished_clip, load_clip
from data_pipelines.tracked.layouts import LAYOUTS, SPLITS, ClipSpec

if TYPE_CHECKING:
    from avatar_jax.track.tracker import Measures

SKIPPED_NAME = 'skipped.json'
ARCHIVES = 'tracked-clips'  # folder beside the data sets that holds finished clips


@dataclass
class TrackedConfig(tfds.core.BuilderConfig):
    """One size of a data set."""

    resolution: int = 512
    jpeg_quality: int = 95  # 0 stores PNG


def _configs() -> list[TrackedConfig]:
    return [
        TrackedConfig(name='512', description='Full-size crops, JPEG.'),
        TrackedConfig(name='256', resolution=256, description='Smaller crops, JPEG.'),
        TrackedConfig(name='128', resolution=128, jpeg_quality=0, description='Small crops, PNG.'),
        TrackedConfig(name='tiny', resolution=32, jpeg_quality=0, description='For tests.'),
    ]


class TrackedClips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the builders of real data sets have in common; ``layout`` makes the difference."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = _configs()
    url_infos: ClassVar[dict] = {}  # nothing is downloaded, so there are no checksums to look up

    layout: ClassVar[str] = ''
    tracker: Measures | None = None  # None: the default one
    beam: tuple[str, tuple[str, ...]] | None = None  # name of a Beam runner that tracks, and its options
    skipped: list[tuple[str, str]] | None = None  # (clip, reason) of the last run

    def options(self) -> Options:
        """What decides the tracked clips."""
        config = self.builder_config
        return Options(config.resolution, config.jpeg_quality, self._tracker().name)

    def _tracker(self) -> Any:
        return default_tracker() if self.tracker is None else self.tracker

    def _info(self) -> tfds.core.DatasetInfo:
        config, layout = self.builder_config, LAYOUTS[self.layout]
        return tfds.core.DatasetInfo(
            builder=self,
            description=f'{layout.title}, tracked, aligned and cropped. {layout.citation}.',
            features=frame_features(config.resolution, bool(config.jpeg_quality)),
            disable_shuffling=True,  # keeps the records of a clip together and in order
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager) -> dict:
        folder = Path(dl_manager.manual_dir)
        specs = LAYOUTS[self.layout].find(folder)
        archives = self.data_path.parents[2] / ARCHIVES / self.layout
        tracker, options = self._tracker(), self.options()
        unusable = {}
        if self.beam is not None:
            from data_pipelines.tracked.beam_run import track_with_beam

            unusable = track_with_beam(*self.beam, specs, self.tracker, options, Path(archives))
        ready = track_all(specs, tracker, options, Path(archives), unusable)
        self.skipped = ready.skipped
        if not ready.paths:
            raise UserError(f'{folder}: no clip can be used; the first: {ready.skipped[0][1]}')
        write_json(Path(self.data_path) / SKIPPED_NAME, [{'clip': c, 'reason': r} for c, r in ready.skipped])
        self.info.metadata.update(
            recipe=recipe(specs, options),
            tracker=tracker.name,
            parts=list(tracker.parts),
            basis=tracker.basis,
            synthetic=False,
        )
        people = {p: i for i, p in enumerate(sorted({s.person for s in specs}))}
        return {
            split: self._generate_examples(
                split, [s for s in specs if s.split == split and s.name in ready.paths], ready.paths, people
            )
            for split in SPLITS
            if any(s.split == split and s.name in ready.paths for s in specs)
        }

    def _generate_examples(
        self, split: str, specs: list[ClipSpec], paths: dict[str, Path], people: dict[str, int]
    ) -> Iterator[tuple[int, dict]]:
        table: dict[str, list] = {
            k: [] for k in ('name', 'person', 'first', 'num_frames', 'num_cameras', 'motion', 'clip_fps')
        }
        key = 0
        with Progress(len(specs), f'writing {split}', unit='clip') as bar:
            for spec in specs:
                clip = load_clip(paths[spec.name])
                table['name'].append(spec.name)
                table['person'].append(people[spec.person])
                table['first'].append(key)
                table['num_frames'].append(clip.num_frames)
                table['num_cameras'].append(len(clip.cameras))
                table['clip_fps'].append(clip.fps)
                for camera in range(len(clip.cameras)):
                    table['motion'].append(clip.motion_rows(camera))
                    for example in examples(clip, camera, spec.name, people[spec.person]):
                        yield key, example
                        key += 1
                bar.update()
        usual = Counter(round(f, 3) for f in table['clip_fps']).most_common(1)[0][0]
        np.savez_compressed(
            self.data_path / TABLE_NAME.format(split=split),
            motion=np.concatenate(table.pop('motion')),
            fps=float(usual),
            basis=self._tracker().basis,
            **{k: np.asarray(v) for k, v in table.items()},
        )


def examples(clip: TrackedClip, camera: int, name: str, person: int) -> Iterator[dict]:
    """The records of one camera of a clip."""
    numbers = clip.cameras[camera]
    for frame, (picture, mask) in enumerate(clip.pictures(camera)):
        coefficients = numbers['coefficients'][frame]
        identity = np.zeros(192, np.float32)
        identity[:80], identity[80:160] = coefficients[SLICES['id']], coefficients[SLICES['tex']]
        yield {
            'image': io.BytesIO(picture),
            'mask': io.BytesIO(mask),
            'label': np.asarray(numbers['labels'][frame], np.float32),
            'coefficients': np.asarray(coefficients, np.float32)[:257],
            'landmarks': np.asarray(numbers['landmarks'][frame], np.float32),
            'identity': identity,
            'person': person,
            'clip': name,
            'camera': camera,
            'frame': frame,
            'fps': clip.fps,
        }


@dataclass(frozen=True)
class Ready:
    """Archives of the clips that can be used, by name, and what was skipped: (clip, reason)."""

    paths: dict[str, Path]
    skipped: list[tuple[str, str]]


def track_all(
    specs: list[ClipSpec],
    tracker: Measures,
    options: Options,
    folder: Path,
    unusable: Mapping[str, str] | None = None,
) -> Ready:
    """Tracks every clip whose archive is not there yet; a clip that cannot be used is skipped.

    ``unusable``: name -> reason, of clips that were tried already.
    """
    paths, skipped = {}, []
    with Progress(len(specs), 'tracking', unit='clip') as bar:
        for spec in specs:
            try:
                if spec.name in (unusable or {}):
                    raise UserError(unusable[spec.name])
                path = archive_path(folder, spec, options)
                finished_clip(spec, tracker, options, path)
                paths[spec.name] = path
            except UserError as e:
                skipped.append((spec.name, str(e)))
                bar.note(f'skipped: {e}')
            bar.update()
    return Ready(paths, skipped)


def recipe(specs: list[ClipSpec], options: Options) -> dict:
    """What decides the records, as plain data: options, and the clips with their sources."""
    sources = [[s.name, s.person, s.split, options.key(s)] for s in specs]
    return {
        'resolution': options.resolution,
        'jpeg_quality': options.jpeg_quality,
        'tracker': options.tracker,
        'clips': hashlib.sha256(json.dumps(sources).encode()).hexdigest(),
    }


class Hdtf(TrackedClips):
    """HDTF: talking heads in high resolution."""

    name = layout = 'hdtf'
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUTS[layout].instructions


class Vfhq(TrackedClips):
    """VFHQ: interviews."""

    name = layout = 'vfhq'
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUTS[layout].instructions


class CelebvHq(TrackedClips):
    """CelebV-HQ: celebrities."""

    name = layout = 'celebv_hq'
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUTS[layout].instructions


class Voxceleb1(TrackedClips):
    """VoxCeleb1: interviews of 1,251 people."""

    name = layout = 'voxceleb1'
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUTS[layout].instructions


class Voxceleb2(TrackedClips):
    """VoxCeleb2: interviews of 6,112 people."""

    name = layout = 'voxceleb2'
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUTS[layout].instructions


class TalkingHead1kh(TrackedClips):
    """TalkingHead-1KH: 1,000 hours of talking heads."""

    name = layout = 'talkinghead_1kh'
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUTS[layout].instructions


class FfhqEg3d(TrackedClips):
    """FFHQ as EG3D prepares it: single pictures with camera labels."""

    name = layout = 'ffhq_eg3d'
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUTS[layout].instructions


class Multiface(TrackedClips):
    """Multiface: many synchronous cameras around a talking person."""

    name = layout = 'multiface'
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUTS[layout].instructions


class OwnVideos(TrackedClips):
    """The user's own videos."""

    name = layout = 'own_videos'
    MANUAL_DOWNLOAD_INSTRUCTIONS = LAYOUTS[layout].instructions


BUILDERS = {
    b.layout: b for b in (Hdtf, Vfhq, CelebvHq, Voxceleb1, Voxceleb2, TalkingHead1kh, FfhqEg3d, Multiface, OwnVideos)
}
