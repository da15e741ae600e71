"""Tracking by the workers of Apache Beam: the direct runner in several processes."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from avatar_jax.errors import UserError
from data_pipelines.sources import BuiltFrames
from data_pipelines.tracked.__main__ import build, main
from tests.grey_tracker import GreyTracker, LoggingTracker
from tests.test_data_tracked import video

ROOT = Path(__file__).resolve().parents[1]
TWO = ('--direct_num_workers=2',)
needs_beam = pytest.mark.skipif(importlib.util.find_spec('apache_beam') is None, reason='Apache Beam is not installed')


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """Seven people's videos, one of them damaged, one without a face."""
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    folder = tmp_path / 'videos'
    for k in range(7):
        video(folder / f'p{k}.mp4', (60 + k, 70, 80 + k))
    video(folder / 'dark.mp4', (0, 0, 0))
    (folder / 'damaged.mp4').write_text('no video')
    return folder


def contents(folder):
    """What pipelines read of all records of a data set, and the bytes of its other files (the order in which the fields
    of a record are stored depends on the process).
    """
    files = {p.name: p.read_bytes() for p in folder.rglob('*') if p.is_file() and 'array_record' not in p.name}
    sources = [(split, BuiltFrames(folder, split)) for split in ('train', 'validation', 'test')]
    records = [(s, i, k, np.asarray(v).tobytes()) for s, r in sources for i in range(len(r)) for k, v in r[i].items()]
    return files, records


@needs_beam
@pytest.mark.slow
def test_two_processes_make_the_same_records(videos, tmp_path):
    alone, skipped = build('own_videos', videos, tmp_path / 'alone', 'tiny', GreyTracker())
    log = tmp_path / 'log'
    beam = {'beam': 'DirectRunner', 'beam_options': TWO}
    together, told = build('own_videos', videos, tmp_path / 'beam', 'tiny', LoggingTracker(log), **beam)
    assert {name for name, _ in skipped} == {'damaged', 'dark'} and told == skipped
    (files, records), (others, same) = contents(alone), contents(together)
    assert files == others and {'skipped.json', 'clips-train.npz'} < set(files)
    assert records == same and len(records) == 7 * 3 * 6
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len({process for _, process in lines}) == 2 and sorted(stem for stem, _ in lines) == [
        'dark',
        *(f'p{k}' for k in range(7)),
    ]
    left = list((tmp_path / 'beam' / 'tracked-clips' / 'own_videos').iterdir())
    assert len(left) == 7 and all(p.suffix == '.zip' for p in left)


@needs_beam
@pytest.mark.slow
def test_a_killed_worker_loses_nothing(videos, tmp_path):
    log, beam = tmp_path / 'log', {'beam': 'DirectRunner', 'beam_options': TWO}
    with pytest.raises(UserError, match=r'a worker process has ended.*clips are finished and kept') as caught:
        build('own_videos', videos, tmp_path / 'beam', 'tiny', LoggingTracker(log, 'p3'), **beam)
    assert '\n' not in str(caught.value)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / 'beam' / 'tracked-clips' / 'own_videos').glob('*.zip')}
    assert 0 < len(kept) < 7 and f'{len(kept)} of 9 clips' in str(caught.value)
    log.unlink()
    folder, skipped = build('own_videos', videos, tmp_path / 'beam', 'tiny', LoggingTracker(log), **beam)
    assert len(log.read_text().splitlines()) == 8 - len(kept), 'only what was not finished'
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in kept.items())
    alone, _ = build('own_videos', videos, tmp_path / 'alone', 'tiny', GreyTracker())
    assert {name for name, _ in skipped} == {'damaged', 'dark'} and contents(folder) == contents(alone)


@needs_beam
@pytest.mark.slow
def test_runners_and_options_that_cannot_work(videos, tmp_path, capsys, monkeypatch):
    command = ['own_videos', '--videos', str(videos), '--data-dir', str(tmp_path / 'd'), '--config', 'tiny']
    for more, said in (
        (['--beam', 'FlinkRuner'], '--beam FlinkRuner: Unexpected pipeline runner'),
        (['--beam', 'DirectRunner', '--beam-options', '--direct_workers=2'], '--direct_workers: Beam has no such'),
        (['--beam', 'DirectRunner', '--beam-options', '--direct_num_workers=x'], '--beam-options: Beam cannot read'),
        (['--beam', 'DirectRunner', '--beam-options', 'workers'], '--beam-options workers: options of a runner begin'),
        (['--beam-options', '--direct_num_workers=2'], '--beam-options: goes with --beam'),
    ):
        assert main([*command, *more]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.chdir(tmp_path)
    assert main([*command[:2], 'videos', *command[3:], '--beam', 'FlinkRunner']) == 2
    assert '--videos videos: with --beam FlinkRunner give the whole path' in capsys.readouterr().err
    assert not (tmp_path / 'd').exists()
    from data_pipelines.tracked import beam_run
    from data_pipelines.tracked.archive import Options

    with pytest.raises(RuntimeError, match="of a worker is 'grey 1', not 'grey 2': install the same"):
        beam_run.Track(GreyTracker(), Options(32, 0, 'grey 2')).setup()
    with pytest.raises(UserError, match='--data-dir that all workers see'):
        beam_run._reasons('FlinkRunner', {'a': (None, tmp_path / 'a.zip')})


def test_without_beam_one_line_says_how_to_install_it(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert main(['own_videos', '--videos', str(videos), '--data-dir', str(tmp_path), '--beam', 'DirectRunner']) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and "pip install 'avatar-jax[beam]'" in err
