"""TFDS builder of the procedural talking heads: one frame per record, random access, no TensorFlow needed.

Records of one clip stand together, camera after camera, frame after frame, and the order is kept across files. Beside
the records, ``clips-<split>.npz`` holds the table that turns (clip, camera, frame) into a record number and the motion
of every record, so that a pipeline needs no pass over the pictures.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from avatar_jax.io.sound import SPEECH_RATE, Sound, write_wav
from avatar_jax.progress import Console
from avatar_jax.sound.features import mel_rows
from avatar_jax.sound.windows import windows_at
from data_pipelines.clips import ClipOptions, make_clip
from data_pipelines.fingerprint import head_fingerprint
from data_pipelines.frame_features import frame_features
from data_pipelines.tables import TABLE_NAME

SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}  # TFDS name -> name of the identity split


@dataclass
class HeadsConfig(tfds.core.BuilderConfig):
    """One size of the data set. A changed number needs another ``name``; ``custom`` makes one."""

    resolution: int = 128
    seed: int = 0
    train_people: int = 400
    validation_people: int = 24
    test_people: int = 24
    clips_per_person: int = 2
    jpeg_quality: int = 0  # 0 stores PNG
    audio: bool = False  # with sound: windows per record, and a WAV file per clip in the folder `sound`
    clips: ClipOptions = field(default_factory=ClipOptions)

    def people(self, split: str) -> int:
        """Number of people of a TFDS split."""
        return {'train': self.train_people, 'validation': self.validation_people, 'test': self.test_people}[split]

    def recipe(self) -> dict:
        """What decides the records, as plain data."""
        return {
            'resolution': self.resolution,
            'seed': self.seed,
            'people': {s: self.people(s) for s in SPLITS},
            'clips_per_person': self.clips_per_person,
            'jpeg_quality': self.jpeg_quality,
            'clips': self.clips.recipe(),
            **({'audio': True} if self.audio else {}),
        }


def _configs() -> list[HeadsConfig]:
    tiny = ClipOptions(num_frames=6, num_cameras=3, multi_view_share=0.5, supersample=1)
    return [
        HeadsConfig(name='128', resolution=128, description='The default.'),
        HeadsConfig(name='64', resolution=64, description='Small pictures.'),
        HeadsConfig(name='256', resolution=256, train_people=300, description='Larger pictures.'),
        HeadsConfig(
            name='512', resolution=512, train_people=200, jpeg_quality=95, description='Full-size crops, JPEG.'
        ),
        HeadsConfig(
            name='tiny',
            resolution=32,
            train_people=3,
            validation_people=2,
            test_people=2,
            clips_per_person=1,
            clips=tiny,
            description='For tests: a few frames at 32 px.',
        ),
    ]


class ProceduralHeads(tfds.core.GeneratorBasedBuilder):
    """Talking procedural heads with cameras, coefficients, landmarks and masks; disjoint people per split."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = _configs()
    # Nothing is downloaded, so there are no checksums to look up beside the code; the look-up needs a package that
    # TFDS does not always bring along (importlib_resources).
    url_infos: ClassVar[dict] = {}

    pool: Executor | None = None  # renders clips in parallel; does not change the data
    show_progress: bool = True

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        sound = {'sound': tfds.features.Tensor(shape=(16, 29), dtype=np.float32)} if config.audio else {}
        return tfds.core.DatasetInfo(
            builder=self,
            description='Procedurally generated talking heads (synthetic) for training and testing head avatars.',
            features=frame_features(config.resolution, bool(config.jpeg_quality), **sound),
            disable_shuffling=True,  # keeps the records of a clip together and in order
            metadata=tfds.core.MetadataDict(
                recipe=config.recipe(),
                head=list(head_fingerprint(config.clips.looks)),
                basis='procedural',
                synthetic=True,
            ),
            license='Apache-2.0',
        )

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        tasks = [
            (config.recipe(), SPLITS[split], person, number)
            for person in range(config.people(split))
            for number in range(config.clips_per_person)
        ]
        table: dict[str, list] = {k: [] for k in ('name', 'person', 'first', 'num_frames', 'num_cameras', 'motion')}
        key = 0
        with tqdm(total=len(tasks), desc=f'{split} clips', file=Console(), disable=not self.show_progress) as bar:
            for clip, examples in (self.pool.map if self.pool else map)(render_clip, tasks):
                table['first'].append(key)
                if config.audio:
                    write_wav(self.data_path / 'sound' / f'{clip["name"]}.wav', clip.pop('sound'))
                for k, v in clip.items():
                    table[k].append(v)
                for example in examples:
                    for k in ('image', 'mask'):
                        example[k] = io.BytesIO(example[k])
                    yield key, example
                    key += 1
                bar.update()
        motion = np.concatenate(table.pop('motion'))
        np.savez_compressed(
            self.data_path / TABLE_NAME.format(split=split),
            motion=motion,
            fps=config.clips.fps,
            **{k: np.asarray(v) for k, v in table.items()},
        )


def render_clip(task: tuple[dict, str, int, int]) -> tuple[dict, list[dict]]:
    """Renders and encodes one clip: its row of the clip table, and its records in order (pictures as bytes)."""
    from PIL import Image

    recipe, split, person, number = task
    clip = make_clip(recipe['seed'], split, person, number, ClipOptions(**recipe['clips']))
    examples = []
    samples = clip.sound() if recipe.get('audio') else None
    heard = None if samples is None else windows_at(mel_rows(Sound(samples, SPEECH_RATE)), clip.times)
    for camera in range(clip.num_cameras):
        labels, coefficients = clip.labels(camera), clip.coefficients(camera)
        for frame in range(clip.num_frames):
            head = clip.render(frame, camera, recipe['resolution'])
            rgb = np.round(np.clip(head.rgb, 0, 1) * 255).astype(np.uint8)
            mask = np.round(np.clip(head.mask, 0, 1) * 255).astype(np.uint8)
            picture, coverage = io.BytesIO(), io.BytesIO()
            if recipe['jpeg_quality']:
                Image.fromarray(rgb).save(picture, 'JPEG', quality=recipe['jpeg_quality'], subsampling=0)
            else:
                Image.fromarray(rgb).save(picture, 'PNG')
            Image.fromarray(mask).save(coverage, 'PNG')
            examples.append(
                {
                    'image': picture.getvalue(),
                    'mask': coverage.getvalue(),
                    'label': labels[frame],
                    'coefficients': coefficients[frame],
                    'landmarks': np.asarray(head.landmarks, np.float32),
                    'identity': np.asarray(clip.identity, np.float32),
                    'person': clip.person,
                    'clip': clip.name,
                    'camera': camera,
                    'frame': frame,
                    'fps': clip.options.fps,
                    **({} if heard is None else {'sound': heard[frame]}),
                }
            )
    row = {
        'name': clip.name,
        'person': clip.person,
        'num_frames': clip.num_frames,
        'num_cameras': clip.num_cameras,
        'motion': np.concatenate([clip.motion_rows(c) for c in range(clip.num_cameras)]),
        **({} if samples is None else {'sound': samples}),
    }
    return row, examples
