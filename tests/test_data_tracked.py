"""Data sets of real people: every layout on a few generated clips, splits, skipping, resume, and the pair pipeline."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avatar_jax.errors import UserError
from avatar_jax.faces.camera_labels import label_from_pose
from avatar_jax.io.video import write_video
from avatar_jax.track.measured import MeasuredClip, Shown
from data_pipelines.clips import evaluation_clips
from data_pipelines.eg3d_images import write_eg3d
from data_pipelines.pairs import PairConfig, pair_batches
from data_pipelines.sources import BuiltFrames
from data_pipelines.tracked import layouts
from data_pipelines.tracked.__main__ import build, main
from data_pipelines.tracked.archive import load_clip, mask_of_picture
from data_pipelines.tracked.layouts import LAYOUTS, ClipSpec, choose_frames, held_out
from tests.grey_tracker import GreyTracker


def video(path, levels=(60, 70, 80), fps=25, side=40):
    write_video(path, (np.full((side, side, 3), v, np.uint8) for v in levels), fps)


def pictures(folder, levels=(60, 70, 80), first=0):
    folder.mkdir(parents=True)
    for k, v in enumerate(levels, first):
        Image.fromarray(np.full((40, 40, 3), v, np.uint8)).save(folder / f'{k:08d}.png')


def make_hdtf(root):
    for k, name in enumerate(('WRA_EricCantor_000', 'RD_Radio1_000', 'RD_Radio1_001', 'WDA_A_000', 'WDA_B_000')):
        video(root / f'{name}.mp4', (60 + k, 70, 80 + k))


def make_vfhq(root):
    for k, name in enumerate(
        ('Clip+G0DGRma_p48+P0+C0+F10-20', 'Clip+G0DGRma_p48+P0+C1+F30-40', 'Clip+-x_y+z+P1+C0+F1-4')
    ):
        pictures(root / 'train' / name, range(50 + k, 150 + k))
    pictures(root / 'test' / 'Clip+abc+P0+C0+F5-9', range(50, 120))


def make_celebv(root):
    for name in ('M2Ohb0FAaJU_1', 'M2Ohb0FAaJU_2', '-_abcdefghi_0'):
        video(root / '35666' / f'{name}.mp4')
    (root / 'celebvhq_info.json').write_text('{}')


def make_voxceleb1(root):
    video(root / 'train' / 'id10001#7w0IBEWc9Qw#000993#001143.mp4')
    pictures(root / 'train' / 'id10002#abc#000001#000002.mp4')  # frames in a folder that is named like a video
    video(root / 'test' / 'id10283#oJ5p0yAEVf8#001153#001236.mp4')


def make_voxceleb2(root):
    for path in (
        'dev/mp4/id00012/21Uxsk56VDQ/00001.mp4',
        'dev/mp4/id00012/21Uxsk56VDQ/00002.mp4',
        'dev/mp4/id00015/abc/00001.mp4',
        'test/mp4/id00017/01dfn2spqyE/00001.mp4',
    ):
        video(root / path)


def make_talkinghead(root):
    video(root / 'train' / 'cropped_clips' / '--Y9imYnfBw_0000_S0_E182_L543_T199_R1111_B767.mp4')
    video(root / 'train' / 'cropped_clips' / '-7TMJtnhiPM_0000_S1202_E1607_L345_T26_R857_B538.mp4')
    video(root / 'val' / 'cropped_clips' / '1lSejjfNHpw_0075_S0_E155_L568_T137_R952_B521.mp4')


def make_ffhq(root):
    clip = evaluation_clips(3, seed=1, num_frames=1)
    write_eg3d(
        root,
        ((np.rint(255 * np.clip(c.render(0, resolution=32).rgb, 0, 1)).astype(np.uint8), c.labels()[0]) for c in clip),
    )


def make_multiface(root):
    for camera, level in (('400002', 200), ('400004', 128), ('400007', 0)):  # the last one sees the back of the head
        pictures(root / 'm--20180227--0000--6795937--GHS' / 'images' / 'E001_Neutral' / camera, [level] * 3, first=20)
    folder = root / 'm--20180227--0000--6795937--GHS' / 'images' / 'E001_Neutral' / '400002'
    Image.fromarray(np.full((40, 40, 3), 9, np.uint8)).save(folder / '00000023.png')  # the others lack this frame


def make_own(root):
    video(root / 'Anna Müller' / 'am Meer.mp4')
    video(root / 'Anna Müller' / 'zu Hause.mov'.replace('.mov', '.mp4'))
    pictures(root / 'Bo' / 'walk')
    video(root / '李.mp4')
    video(root / 'lena.mp4')


# name -> (maker, {split: (people, clips)}, cameras)
CASES = {
    'hdtf': (make_hdtf, {'train': (3, 4), 'test': (1, 1)}),
    'vfhq': (make_vfhq, {'train': (2, 3), 'test': (1, 1)}),
    'celebv_hq': (make_celebv, {'train': (2, 3)}),
    'voxceleb1': (make_voxceleb1, {'train': (2, 2), 'test': (1, 1)}),
    'voxceleb2': (make_voxceleb2, {'train': (2, 3), 'test': (1, 1)}),
    'talkinghead_1kh': (make_talkinghead, {'train': (2, 2), 'validation': (1, 1)}),
    'ffhq_eg3d': (make_ffhq, {'train': (3, 3)}),
    'multiface': (make_multiface, {'test': (1, 1)}),
    'own_videos': (make_own, {'train': (2, 2), 'validation': (1, 2), 'test': (1, 1)}),
}


def test_every_layout_has_a_case():
    from data_pipelines.tracked.builder import BUILDERS

    assert set(CASES) == set(LAYOUTS) == set(BUILDERS)
    for name, builder in BUILDERS.items():
        assert builder.name == name and LAYOUTS[name].short in builder.MANUAL_DOWNLOAD_INSTRUCTIONS


@pytest.mark.parametrize('name', sorted(CASES))
def test_layout_from_files_to_batches(tmp_path, name):
    make, expected = CASES[name]
    make(tmp_path / 'videos')
    specs = LAYOUTS[name].find(tmp_path / 'videos')
    found = {s: (len({c.person for c in specs if c.split == s}), sum(c.split == s for c in specs)) for s in expected}
    assert found == expected and {c.split for c in specs} == set(expected)
    people = {}
    for clip in specs:
        assert people.setdefault(clip.person, clip.split) == clip.split, 'nobody is in two splits'

    tracker = GreyTracker()
    folder, skipped = build(name, tmp_path / 'videos', tmp_path / 'tfds', 'tiny', tracker)
    assert skipped == [] and folder.parts[-3:-1] == (name, 'tiny')
    for split, (persons, clips) in expected.items():
        source = BuiltFrames(folder, split)
        table = source.table
        assert len(table.people) == persons and len(table.name) == clips and table.basis == 'procedural'
        assert sorted(table.name) == sorted(c.name for c in specs if c.split == split)
        for k in range(clips):
            clip = next(c for c in specs if c.name == table.name[k])
            frames = 1 if clip.label else 3 if clip.frames is None else min(clip.frames, 70)
            assert table.num_frames[k] == frames, clip
            record = source[table.record(k, 0, 0)]
            row = table.motion[table.record(k, 0, 0)]
            assert record['image'].shape == (32, 32, 3) and record['mask'].shape == (32, 32)
            assert record['identity'][0] == 0.5 and not record['identity'][160:].any()
            if clip.label is None:
                assert record['image'].mean() / 255 == pytest.approx(row[0], abs=0.03)
                assert row[65] == pytest.approx(row[0] - 0.5, abs=1e-6)
                np.testing.assert_allclose(record['label'], label_from_pose(row[64:67], row[67:70], 'raw'), atol=1e-5)
        settings = PairConfig(batch_size=1, sampling='uniform')
        with pair_batches(source, settings) as batches:
            batch = next(batches)
        assert batch['images'].shape == (1, 2, 32, 32, 3) and batch['windows'].shape == (1, 2, 27, 70)
        assert np.isfinite(batch['windows']).all()
    again, _ = build(name, tmp_path / 'videos', tmp_path / 'tfds', 'tiny', GreyTracker())
    assert again == folder
    if len(expected) < 3:
        missing = next(s for s in layouts.SPLITS if s not in expected)
        with pytest.raises(UserError, match=f"has no split '{missing}'; there are {min(expected)}"):
            BuiltFrames(folder, missing)


def test_special_features_of_some_layouts(tmp_path):
    make_multiface(tmp_path / 'm')
    folder, _ = build('multiface', tmp_path / 'm', tmp_path / 'tfds', 'tiny', GreyTracker())
    table = BuiltFrames(folder, 'test').table
    assert table.num_cameras.tolist() == [2] and table.num_frames.tolist() == [3], 'two views of the same three frames'
    front, side = table.motion[table.record(0, 0, 0), 65], table.motion[table.record(0, 1, 0), 65]
    assert abs(front) < abs(side), 'the most frontal view comes first'

    make_ffhq(tmp_path / 'f')
    specs = LAYOUTS['ffhq_eg3d'].find(tmp_path / 'f')
    folder, _ = build('ffhq_eg3d', tmp_path / 'f', tmp_path / 'tfds', 'tiny', GreyTracker())
    source = BuiltFrames(folder, 'train')
    for k in range(3):
        spec = next(s for s in specs if s.name == source.table.name[k])
        record = source[source.table.record(k, 0, 0)]
        np.testing.assert_allclose(record['label'], spec.label, atol=1e-6)
        stored = np.asarray(Image.open(spec.cameras[0][0]))
        np.testing.assert_array_equal(record['image'], stored)
        pose = source.table.motion[source.table.record(k, 0, 0), 64:70]
        np.testing.assert_allclose(label_from_pose(pose[:3], pose[3:], 'raw')[:16], spec.label[:16], atol=1e-4)


def test_the_mask_of_an_aligned_picture_is_of_that_picture(tmp_path):
    """The tracker cuts a crop of its own out of the picture; its mask is brought back to where the picture has it."""
    ys, xs = np.mgrid[:80, :80]
    matrix = np.array([[1.5, 0.0, -10.0], [0.0, 1.5, -25.0]])  # to a crop of 40 pixels
    inside = ((xs - 22) ** 2 + (ys - 32) ** 2 < 49).astype(np.float32)  # in the picture
    y, x = np.mgrid[:40, :40]
    crop = (((x + 10) / 1.5 - 22) ** 2 + ((y + 25) / 1.5 - 32) ** 2 < 49).astype(np.float32)
    clip = MeasuredClip(
        tmp_path / 'a.png',
        np.zeros((1, 257)),
        np.zeros((1, 25)),
        np.zeros((1, 68, 2)),
        np.ones(1, bool),
        25.0,
        'procedural',
        ('landmarks',),
        lambda wanted, on_frame: iter([Shown(0, np.zeros((40, 40, 3), np.uint8), crop)]),
        matrices=matrix[None],
    )
    found = mask_of_picture(clip, 80, 40)
    truth = inside.reshape(40, 2, 40, 2).mean((1, 3))
    assert found.shape == (40, 40) and np.abs(found - truth).mean() < 0.01
    assert (mask_of_picture(dataclasses.replace(clip, matrices=None), 80, 40) == crop).all()


# --- splits -----------------------------------------------------------------------------------------------------------


def test_lists_decide_the_split(tmp_path):
    make_hdtf(tmp_path)
    (tmp_path / 'test_list.txt').write_text('WDA_A_000\nWDA_B_000.mp4\n')
    specs = LAYOUTS['hdtf'].find(tmp_path)
    assert sorted(c.name for c in specs if c.split == 'test') == ['WDA_A_000', 'WDA_B_000']
    (tmp_path / 'train_list.txt').write_text('RD_Radio1_000\n')
    assert sorted(c.name for c in LAYOUTS['hdtf'].find(tmp_path)) == ['RD_Radio1_000', 'WDA_A_000', 'WDA_B_000']
    (tmp_path / 'test_list.txt').write_text('RD_Radio1_001\n')
    with pytest.raises(UserError, match='RD_Radio1 is in the test list and in training'):
        LAYOUTS['hdtf'].find(tmp_path)
    (tmp_path / 'test_list.txt').write_text('RD_Nobody_000\n')
    with pytest.raises(UserError, match='not here.*RD_Nobody_000'):
        LAYOUTS['hdtf'].find(tmp_path)
    (tmp_path / 'test_list.txt').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(UserError, match='not a readable list'):
        LAYOUTS['hdtf'].find(tmp_path)


def test_people_put_aside_do_not_depend_on_the_others():
    people = [f'p{k}' for k in range(100)]
    aside = held_out(people, 20, 'hdtf', ('p7',))
    assert len(aside) == 20 and 'p7' in aside
    rest = [p for p in people if p not in list(aside)[:5] or p == 'p7']
    assert len(held_out(rest, 15, 'hdtf', ('p7',)) & aside) >= 14
    assert held_out(people[:5], 20, 'hdtf') < set(people[:5]) and len(held_out(people[:5], 20, 'x')) == 1
    assert held_out(people[:2], 1, 'x') == set(), 'two people are too few to put one aside'
    many = [ClipSpec(f'{p}_{k}', p, '', ()) for p in people for k in range(2)]
    assert (
        len({c.person for c in layouts.with_lists(layouts.Path('/none'), many, 20, 'hdtf') if c.split == 'test'}) == 20
    )


def test_one_person_is_split_in_time(tmp_path):
    video(tmp_path / 'me' / 'talk.mp4', range(20, 75))
    specs = {c.split: c for c in LAYOUTS['own_videos'].find(tmp_path)}
    train, test = (choose_frames(55, specs[s]) for s in ('train', 'test'))
    assert train.tolist() == list(range(50)) and test.tolist() == list(range(50, 55))
    assert choose_frames(300, ClipSpec('a', 'a', 'train', (), frames=30)).tolist() == list(range(0, 300, 10))
    assert choose_frames(7, ClipSpec('a', 'a', 'train', (), frames=30)).tolist() == list(range(7))
    with pytest.raises(UserError, match='too few for its part'):
        choose_frames(4, ClipSpec('a', 'a', 'test', (), part=(10 / 11, 1.0)))


# --- bad input --------------------------------------------------------------------------------------------------------


def test_directories_that_are_not_the_data_set(tmp_path):
    for name, layout in LAYOUTS.items():
        with pytest.raises(UserError, match='no such folder') as caught:
            layout.find(tmp_path / 'none')
        assert '\n' not in str(caught.value)
        (tmp_path / name).mkdir()
        (tmp_path / name / 'readme.txt').write_text('hello')
        with pytest.raises(UserError, match='holds nothing that looks like') as caught:
            layout.find(tmp_path / name)
        assert layout.short in str(caught.value) and '\n' not in str(caught.value)
    with pytest.raises(UserError, match="data set 'hdft': unknown"):
        build('hdft', tmp_path, tmp_path)
    make_hdtf(tmp_path / 'h')
    with pytest.raises(UserError, match='--config 1024: unknown'):
        build('hdtf', tmp_path / 'h', tmp_path / 'tfds', '1024', GreyTracker())
    video(tmp_path / 'h' / 'more' / 'WDA_A_000.mp4')
    with pytest.raises(UserError, match='two clips are called WDA_A_000'):
        LAYOUTS['hdtf'].find(tmp_path / 'h')


def test_clips_that_cannot_be_used_are_skipped_and_listed(tmp_path, monkeypatch, capsys):
    root = tmp_path / 'videos'
    make_own(root)
    (root / 'damaged.mp4').write_text('no video')
    video(root / 'dark.mp4', (0, 0, 0))
    video(root / 'leaves.mp4', (90, 0, 0, 0))
    video(root / 'comes and goes.mp4', (90, 0, 95, 92))
    video(root / 'one frame.mp4', (90,))
    video(root / 'cut.mp4', (60, 61, 62, 63, 250, 250))
    tracker = GreyTracker()
    monkeypatch.setattr('data_pipelines.tracked.builder.default_tracker', lambda: tracker)
    arguments = ['own_videos', '--videos', str(root), '--data-dir', str(tmp_path / 'tfds'), '--config', 'tiny']
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    folder = out.strip().splitlines()[-1]
    listed = err.split('clips were skipped:')[-1]
    for name, reason in (
        ('damaged', 'not a video'),
        ('dark', 'no face found'),
        ('leaves', 'only 1 of 4 frames'),
        ('one frame', 'only 1 frame'),
    ):
        assert any(line.strip().startswith(f'{name}:') and reason in line for line in listed.splitlines()), name
    assert '4 clips were skipped' in err and 'Traceback' not in err
    assert {r['clip'] for r in json.loads((layouts.Path(folder) / 'skipped.json').read_text())} == {
        'damaged',
        'dark',
        'leaves',
        'one frame',
    }
    lengths = {}
    for path in layouts.Path(folder).glob('clips-*.npz'):
        table = BuiltFrames(folder, path.stem.removeprefix('clips-')).table
        lengths |= dict(zip(table.name.tolist(), table.num_frames.tolist(), strict=True))
    assert lengths['comes and goes'] == 3, 'frames without a face are left out'
    assert lengths['cut'] == 4, 'only the longest shot is used'
    # A second run finds the data set and says the same; new files are noticed.
    assert main(arguments) == 2 and '4 clips were skipped' in capsys.readouterr().err
    video(root / 'new.mp4')
    assert main(arguments) == 2
    assert 'was built from other files' in capsys.readouterr().err


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    make_hdtf(tmp_path / 'videos')

    class Stopped(GreyTracker):
        def __call__(self, frames, **options):
            if len(self.clips) == 2:
                raise KeyboardInterrupt
            return super().__call__(frames, **options)

    with pytest.raises(KeyboardInterrupt):
        build('hdtf', tmp_path / 'videos', tmp_path / 'tfds', 'tiny', Stopped())
    archives = sorted((tmp_path / 'tfds' / 'tracked-clips' / 'hdtf').glob('*'))
    assert len(archives) == 2 and all(p.suffix == '.zip' for p in archives)
    tracker = GreyTracker()
    folder, skipped = build('hdtf', tmp_path / 'videos', tmp_path / 'tfds', 'tiny', tracker)
    assert len(tracker.clips) == 3 and not skipped
    whole, _ = build('hdtf', tmp_path / 'videos', tmp_path / 'other', 'tiny', GreyTracker())
    for split in ('train', 'test'):
        a, b = BuiltFrames(folder, split), BuiltFrames(whole, split)
        np.testing.assert_array_equal(a.table.motion, b.table.motion)
        np.testing.assert_array_equal(a[2]['image'], b[2]['image'])
    archives[0].write_bytes(archives[0].read_bytes()[:100])
    with pytest.raises(UserError, match='damaged archive'):
        load_clip(archives[0])


def test_nothing_usable_and_command_line(tmp_path, capsys):
    for name in ('dark', 'black'):
        video(tmp_path / 'v' / f'{name}.mp4', (0, 0))
    with pytest.raises(UserError, match='no clip can be used; the first: .*no face found'):
        build('own_videos', tmp_path / 'v', tmp_path / 'tfds', 'tiny', GreyTracker())
    assert main(['--list']) == 0
    listed = capsys.readouterr().out
    assert all(f'{n}: ' in listed for n in LAYOUTS)
    make_hdtf(tmp_path / 'h')
    assert main(['hdtf', '--videos', str(tmp_path / 'h'), '--check']) == 0
    assert 'train: 4 clips of 3 people' in capsys.readouterr().out
    for arguments, said in (
        (['nothing'], 'give one of hdtf'),
        ([], 'give one of hdtf'),
        (['hdtf'], '--videos: where is HDTF'),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err


def test_data_sets_that_texts_name_are_there():
    root = Path(__file__).resolve().parents[1]
    texts = [root / 'README.md', *(root / 'docs').glob('*.md'), *(root / 'configs').glob('*.py')]
    named = {n for f in texts for n in re.findall(r'data_pipelines\.tracked ([a-z]\w*)', f.read_text(encoding='utf-8'))}
    assert {'hdtf', 'voxceleb1'} <= named <= set(LAYOUTS), named
