"""Where each data set keeps its clips, who is in them, and which split they belong to.

A layout looks through a manual directory and gives ``ClipSpec`` objects, or says in one line what is missing. Splits
follow the data set's own lists and folders where there are any; else people (never single clips) are put aside by a
hash of their name, so that the choice does not depend on what else is in the folder.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from avatar_jax.errors import UserError
from avatar_jax.io.kinds import PICTURE_ENDINGS, VIDEO_ENDINGS
from avatar_jax.io.text import decode

SPLIT_FOLDERS = {
    'train': 'train',
    'dev': 'train',
    'val': 'validation',
    'valid': 'validation',
    'validation': 'validation',
    'test': 'test',
}
SPLITS = ('train', 'validation', 'test')


@dataclass(frozen=True)
class ClipSpec:
    """One clip before tracking.

    Attributes:
        name: unique in the data set.
        person: name of the person.
        split: 'train', 'validation' or 'test'.
        cameras: for each synchronous camera one video, or the pictures of its frames in order.
        part: the share of the frames that is used, (start, stop) in 0..1.
        frames: how many frames are taken, evenly over the clip; None takes all.
        fps: of pictures.
        label: [25] camera label that the data set gives for a single aligned picture.
    """

    name: str
    person: str
    split: str
    cameras: tuple[Path | tuple[Path, ...], ...]
    part: tuple[float, float] = (0.0, 1.0)
    frames: int | None = None
    fps: float = 25.0
    label: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Layout:
    """A data set.

    Attributes:
        name: as TFDS and the command line call it.
        title: as people call it.
        instructions: what the manual directory must look like.
        clips: finds the clips in a directory.
        citation: where the split comes from.
    """

    name: str
    title: str
    instructions: str
    clips: Callable[[Path], list[ClipSpec]]
    citation: str = ''

    def find(self, folder: str | Path) -> list[ClipSpec]:
        """The clips of a manual directory, sorted by name.

        Raises:
            UserError: no such directory, or it does not look like this data set; the line ends with what is expected.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f'{folder}: no such folder; put {self.title} there: {self.short}')
        found = sorted(self.clips(folder), key=lambda c: c.name)
        if not found:
            raise UserError(f'{folder}: holds nothing that looks like {self.title}; expected {self.short}')
        names = [c.name for c in found]
        double = next((a for a, b in itertools.pairwise(names) if a == b), None)
        if double is not None:
            raise UserError(f'{folder}: two clips are called {double}; rename one')
        return found

    @property
    def short(self) -> str:
        """The instructions' first line."""
        return self.instructions.strip().splitlines()[0]


# ------------------------------------------------------------------------------------------------------------- helpers


def is_video(path: Path) -> bool:
    """Whether a name ends like a video's."""
    return path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith('.')


def is_picture(path: Path) -> bool:
    """Whether a name ends like a picture's."""
    return path.suffix.lower() in PICTURE_ENDINGS and not path.name.startswith('.')


def natural(path: Path) -> tuple:
    """Sort key under which 2.png comes before 10.png."""
    return tuple((0, int(x), '') if x.isdigit() else (1, 0, x) for x in re.split(r'(\d+)', path.name))


def pictures_in(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder in the order of their numbers."""
    return tuple(sorted((p for p in folder.iterdir() if is_picture(p)), key=natural))


def videos_and_folders(folder: Path) -> Iterable[tuple[Path, Path | tuple[Path, ...]]]:
    """(path, source) of every video, and of every folder that holds pictures (or is named like a video), below a
    folder.
    """
    for path in sorted(folder.rglob('*')):
        if any(part.startswith('.') for part in path.relative_to(folder).parts):
            continue
        if path.is_file() and is_video(path):
            yield path, path
        elif path.is_dir() and (pictures := pictures_in(path)):
            yield path, pictures


def share(name: str, salt: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return (
        int.from_bytes(hashlib.sha256(f'{salt}:{name}'.encode('utf-8', 'surrogateescape')).digest()[:8], 'big') / 2**64
    )


def stem(path: Path) -> str:
    """The name without a video's ending (folders of frames are sometimes named like videos)."""
    return path.stem if path.suffix.lower() in VIDEO_ENDINGS else path.name


def split_of(path: Path, root: Path) -> str | None:
    """The split that a folder on the way to ``path`` names, or None."""
    for part in path.relative_to(root).parts[:-1]:
        if part.lower() in SPLIT_FOLDERS:
            return SPLIT_FOLDERS[part.lower()]
    return None


def read_list(path: Path) -> list[str] | None:
    """Names in a text file, one per line, without endings of videos; None when there is no such file."""
    if not path.is_file():
        return None
    try:
        lines = decode(path.read_bytes()).splitlines()
    except (OSError, ValueError) as e:
        raise UserError(f'{path}: is not a readable list of clip names; expected one name per line') from e
    return [stem(Path(line.strip())) for line in lines if line.strip()]


def held_out(people: Iterable[str], count: int, salt: str, always: Iterable[str] = ()) -> set[str]:
    """``count`` people chosen by a hash of their names, those of ``always`` first; at most a third of all."""
    people = sorted(set(people))
    first = [p for p in always if p in people]
    rest = sorted((p for p in people if p not in first), key=lambda p: share(p, salt))
    return set([*first, *rest][: min(count, len(people) // 3)])


def with_lists(
    folder: Path, clips: list[ClipSpec], test_people: int, salt: str, always: Iterable[str] = ()
) -> list[ClipSpec]:
    """Splits by ``test_list.txt`` (and ``train_list.txt``), else by folders, else by people.

    Raises:
        UserError: a list names a clip that is not there, or a person is in both.
    """
    test, train = read_list(folder / 'test_list.txt'), read_list(folder / 'train_list.txt')
    if test is not None:
        names = {c.name for c in clips}
        missing = [n for n in [*test, *(train or [])] if n not in names]
        if missing:
            raise UserError(
                f'{folder / "test_list.txt"}: names clips that are not here ({missing[0]}, {len(missing)} in all); '
                'get them, or take them out of the list'
            )
        out = [
            replace(c, split='test' if c.name in set(test) else 'train')
            for c in clips
            if train is None or c.name in set(train) | set(test)
        ]
        both = {c.person for c in out if c.split == 'test'} & {c.person for c in out if c.split == 'train'}
        if both:
            raise UserError(
                f'{folder / "test_list.txt"}: {min(both)} is in the test list and in training; '
                'test people must not be trained on'
            )
        return out
    if any(c.split for c in clips):
        return [replace(c, split=c.split or 'train') for c in clips]
    aside = held_out((c.person for c in clips), test_people, salt, always)
    return [replace(c, split='test' if c.person in aside else 'train') for c in clips]


# ------------------------------------------------------------------------------------------------------------ data sets

HDTF_TEST_PEOPLE, HDTF_DRIVER = 20, 'WRA_EricCantor'
VFHQ_TRAIN_FRAMES, VFHQ_TEST_FRAMES, VFHQ_TEST_CLIPS = 30, 60, 30
VOXCELEB1_TEST = range(10270, 10310)  # the verification test speakers, whose names begin with E
_NUMBERED = re.compile(r'^(?P<person>.+?)_\d+$')


def hdtf(folder: Path) -> list[ClipSpec]:
    """``RD_Radio1_000.mp4``: person before the clip's number (or before '#')."""
    clips = []
    for path, source in videos_and_folders(folder):
        name = stem(path)
        match = _NUMBERED.match(name)
        person = name.split('#')[0] if '#' in name else match['person'] if match else name
        clips.append(ClipSpec(name, person, split_of(path, folder) or '', (source,)))
    return with_lists(folder, clips, HDTF_TEST_PEOPLE, 'hdtf', (HDTF_DRIVER,))


def vfhq(folder: Path) -> list[ClipSpec]:
    """``Clip+<video>+P<person>+C<clip>+F<first>-<last>``: a folder of PNG frames, or a video of that name."""
    pattern = re.compile(r'^Clip\+(?P<video>.+)\+P(?P<person>\d+)\+C\d+(\+F\d+-\d+)?$')
    clips = []
    for path, source in videos_and_folders(folder):
        match = pattern.match(stem(path))
        if match:
            clips.append(
                ClipSpec(stem(path), f'{match["video"]}+P{match["person"]}', split_of(path, folder) or '', (source,))
            )
    clips = with_lists(folder, clips, VFHQ_TEST_CLIPS, 'vfhq')
    return [replace(c, frames=VFHQ_TEST_FRAMES if c.split == 'test' else VFHQ_TRAIN_FRAMES) for c in clips]


def celebv_hq(folder: Path) -> list[ClipSpec]:
    """``<YouTube id>_<number>.mp4``; clips of one video count as one person. All of it is training data."""
    clips = []
    for path, source in videos_and_folders(folder):
        match = re.match(r'^(?P<video>.{11})_\d+(_\d+)*$', stem(path))
        if match:
            clips.append(ClipSpec(stem(path), match['video'], split_of(path, folder) or 'train', (source,)))
    return clips


def voxceleb(folder: Path) -> list[ClipSpec]:
    """``id10001#<video>#<first>#<last>.mp4``, or ``<split>/mp4/id00012/<video>/00001.mp4``."""
    clips = []
    for path, source in videos_and_folders(folder):
        name, parents = stem(path), path.relative_to(folder).parts[:-1]
        person = next((p for p in (name.split('#')[0], *parents) if re.fullmatch(r'id\d{5}', p)), None)
        if person is None:
            continue
        if '#' not in name:
            name = '#'.join((*parents[parents.index(person) :], name)) if person in parents else name
        split = split_of(path, folder) or ('test' if int(person[2:]) in VOXCELEB1_TEST else 'train')
        clips.append(ClipSpec(name, person, split, (source,)))
    return clips


def talkinghead_1kh(folder: Path) -> list[ClipSpec]:
    """``<split>/cropped_clips/<YouTube id>_<n>_S<first>_E<last>_L<l>_T<t>_R<r>_B<b>.mp4``."""
    clips = []
    for path, source in videos_and_folders(folder):
        match = re.match(r'^(?P<video>.{11})_\d+_S\d+_E\d+(_L\d+_T\d+_R\d+_B\d+)?$', stem(path))
        if match:
            clips.append(ClipSpec(stem(path), match['video'], split_of(path, folder) or 'train', (source,)))
    return clips


def ffhq(folder: Path) -> list[ClipSpec]:
    """EG3D's folder: aligned pictures and ``dataset.json``; every picture is a person of its own, all are for
    training.
    """
    from data_pipelines.eg3d_images import Eg3dImages

    if not (folder / 'dataset.json').is_file():
        return []
    reader = Eg3dImages(folder)
    return [
        ClipSpec(
            str(Path(name).with_suffix('')).replace('/', '-'),
            name,
            'train',
            ((folder / name,),),
            label=tuple(map(float, label)),
        )
        for name, label in zip(reader.names, reader.labels, strict=True)
    ]


def multiface(folder: Path) -> list[ClipSpec]:
    """``m--<date>--<id>--<subject>--GHS/images/<segment>/<camera>/<frame>.png``; all of it is test data."""
    clips = []
    for entity in sorted(folder.glob('m--*')):
        match = re.match(r'^m--\d+--\d+--(?P<subject>\d+)--\w+$', entity.name)
        if not match:
            continue
        for segment in sorted(p for p in (entity / 'images').glob('*') if p.is_dir()):
            cameras = [pictures_in(c) for c in sorted(segment.iterdir()) if c.is_dir()]
            cameras = [c for c in cameras if c]
            if not cameras:
                continue
            # Synchronous frames: those that every camera has.
            common = set.intersection(*({p.stem for p in c} for c in cameras))
            kept = tuple(tuple(p for p in c if p.stem in common) for c in cameras)
            if common:
                clips.append(ClipSpec(f'{entity.name}-{segment.name}', match['subject'], 'test', kept, fps=30.0))
    return clips


OWN_SHARE = 0.05
ALONE_TRAIN = 10 / 11  # of the frames, when there is one person only


def own_videos(folder: Path) -> list[ClipSpec]:
    """Any videos and folders of pictures; the person is the first folder below the split, or the clip itself."""
    clips = []
    for path, source in videos_and_folders(folder):
        parts = [p for p in path.relative_to(folder).parts if p.lower() not in SPLIT_FOLDERS]
        name = '-'.join((*parts[:-1], stem(path)))
        clips.append(
            ClipSpec(name, parts[0] if len(parts) > 1 else stem(path), split_of(path, folder) or '', (source,))
        )
    if any(c.split for c in clips):
        return [replace(c, split=c.split or 'train') for c in clips]
    people = {c.person for c in clips}
    if len(people) == 1:
        halves = (('train', (0.0, ALONE_TRAIN)), ('test', (ALONE_TRAIN, 1.0)))
        return [replace(c, name=f'{c.name}-{split}', split=split, part=part) for c in clips for split, part in halves]
    aside = max(1, round(OWN_SHARE * len(people)))
    test = held_out(people, aside, 'own test')
    validation = held_out(people - test, aside, 'own validation')
    return [
        replace(c, split='test' if c.person in test else 'validation' if c.person in validation else 'train')
        for c in clips
    ]


LAYOUTS = {
    x.name: x
    for x in (
        Layout(
            'hdtf',
            'HDTF',
            """videos such as RD_Radio1_000.mp4 or WRA_EricCantor_000.mp4 (subject and clip number)
HDTF gives YouTube addresses, times and face boxes; download and cut the clips with its scripts. Subfolders train/ and
test/ or a file test_list.txt with one clip name per line (OTAvatar gives one out) decide the split.""",
            hdtf,
            'OTAvatar: 20 test videos of subjects outside of training, among them WRA_EricCantor',
        ),
        Layout(
            'vfhq',
            'VFHQ',
            """folders of PNG frames named Clip+VIDEO+P0+C0+F100-200 (or videos of that name)
As in the VFHQ archives. Subfolders train/ and test/ or test_list.txt decide the split.""",
            vfhq,
            'GPAvatar: 30 frames of each training clip, 60 frames of each of 30 test clips, evenly over the clip',
        ),
        Layout(
            'celebv_hq',
            'CelebV-HQ',
            """videos named VIDEO_0.mp4 (YouTube id of 11 characters and number)
As the data set's download script cuts them; celebvhq_info.json is not needed.""",
            celebv_hq,
            'NOFA: all clips are training data',
        ),
        Layout(
            'voxceleb1',
            'VoxCeleb1',
            """videos or frame folders named id10001#VIDEO#000993#001143.mp4, best in train/ and test/
As usual preprocessing cuts them. Without such folders the speakers id10270 to id10309 are the test people.""",
            voxceleb,
            'VoxCeleb1: 40 test speakers',
        ),
        Layout(
            'voxceleb2',
            'VoxCeleb2',
            """dev/mp4/id00012/VIDEO/00001.mp4 and test/mp4/id00017/VIDEO/00001.mp4
As the official archives unpack; dev is the training split. id00012#VIDEO#... names work as well.""",
            voxceleb,
            'VoxCeleb2: dev and test people',
        ),
        Layout(
            'talkinghead_1kh',
            'TalkingHead-1KH',
            """train/cropped_clips/VIDEO_0000_S0_E182_L543_T199_R1111_B767.mp4 and val/cropped_clips/
As the data set's scripts cut them.""",
            talkinghead_1kh,
            'TalkingHead-1KH: train and val lists',
        ),
        Layout(
            'ffhq_eg3d',
            'FFHQ in the EG3D format',
            """dataset.json with camera labels, and the aligned pictures it names
As EG3D's preparation writes it (unpack a zip first).""",
            ffhq,
            'EG3D: all pictures are training data',
        ),
        Layout(
            'multiface',
            'Multiface',
            """m--20180227--0000--6795937--GHS/images/SEGMENT/CAMERA/FRAME.png
As the data set's download script unpacks it. All cameras of a segment become synchronous views.""",
            multiface,
            'OTAvatar: test data for many views',
        ),
        Layout(
            'own_videos',
            'your own videos',
            """videos or folders of pictures; a folder per person, or one video per person
Subfolders train/, validation/ and test/ decide the split. Without them a twentieth of the people (at least one each) is
put aside for validation and test; a single person's clips are split in time, the first ten elevenths for training.""",
            own_videos,
            'HFA-GP and AD-NeRF: one person, split in time',
        ),
    )
}


def choose_frames(total: int, clip: ClipSpec) -> np.ndarray:
    """Numbers of the frames that are used out of ``total``: a part of the clip, all or evenly spread."""
    start, stop = (round(share * total) for share in clip.part)
    if stop <= start:
        raise UserError(f'{clip.name}: has only {total} frames, too few for its part of the split')
    if clip.frames is None or stop - start <= clip.frames:
        return np.arange(start, stop)
    return start + (np.arange(clip.frames) * (stop - start)) // clip.frames
