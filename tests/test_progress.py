"""Progress: a bar on a terminal, plain lines in a log file."""

import io
import re
import shlex
import subprocess
import sys
import textwrap
import time

import pytest

from avatar_jax import progress
from avatar_jax.progress import Progress, activity
from avatar_jax.train.logging import RunProgress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_log_files_get_lines_with_rate_and_remaining_time(monkeypatch):
    monkeypatch.setattr(progress, 'LOG_INTERVAL', 0.01)
    stream = io.StringIO()
    with Progress(4, 'inversion', stream=stream) as bar:
        for step in range(4):
            time.sleep(0.02)
            bar.update(1, loss=1 / (step + 1))
    text = stream.getvalue()
    assert '\r' not in text
    lines = text.splitlines()
    assert lines[0].startswith('inversion:   0%') and ' 4/4 ' in lines[-1] and 'loss=0.25' in lines[-1]
    assert re.search(r'2/4 \[00:0\d<00:0\d, +[\d.]+(step/s|s/step)', text)


@pytest.mark.parametrize('terminal', [True, False])
def test_the_clock_goes_on_within_a_step(monkeypatch, terminal):
    monkeypatch.setattr(progress, 'LOG_INTERVAL', 0.02)
    stream = Terminal() if terminal else io.StringIO()
    bar = Progress(2, 'inversion', stream=stream)
    time.sleep(2.3)  # the clock shows whole seconds
    bar.close()
    text = stream.getvalue()
    assert '0/2 [00:01<' in text and '0/2 [00:02<' in text
    time.sleep(0.1)
    assert stream.getvalue() == text, 'it stops with the bar'


def test_bars_tell_compiling_from_running(monkeypatch):
    import jax

    monkeypatch.setattr(progress, 'LOG_INTERVAL', 0.02)
    stream = io.StringIO()
    with Progress(2, 'inversion', stream=stream) as bar:

        def traced(x):
            time.sleep(0.3)
            return jax.pure_callback(lambda y: (time.sleep(0.3), y)[1], x, x)

        jax.block_until_ready(jax.jit(traced)(jax.numpy.zeros(())))
        bar.describe('looking')
        bar.update(1)
    said = [line.partition(':')[0] for line in stream.getvalue().splitlines()]
    first = said.index('inversion (compiling)')
    assert 'inversion' in said[first:], 'it runs after it was compiled'
    assert said[-1] == 'looking'


def test_terminals_get_one_line_that_is_redrawn():
    stream = Terminal()
    with Progress(3, 'frames', unit='frame', stream=stream) as bar:
        bar.update(3)
    assert stream.getvalue().count('\n') == 1 and '3/3' in stream.getvalue()


def test_iterating_counts_every_item(capsys):
    assert list(progress.progress([5, 6, 7], 'items')) == [5, 6, 7]
    assert '3/3' in capsys.readouterr().err


@pytest.mark.parametrize('terminal', [True, False])
def test_activity_ticks_and_ends(terminal):
    stream = Terminal() if terminal else io.StringIO()
    with activity('compiling', stream=stream, interval=0.02):
        time.sleep(0.2)
    text = stream.getvalue()
    assert text.count('compiling ...') >= 3 and re.search(r'compiling: done in 0\.\d s\n$', text)
    assert terminal == ('\r' in text)
    with pytest.raises(ValueError, match='x'), activity('writing', stream=stream):
        raise ValueError('x')
    assert 'writing: failed after' in stream.getvalue()


def test_a_closed_stream_does_not_end_the_work():
    stream = io.StringIO()
    with activity('compiling', stream=stream, interval=0.01):
        stream.close()
        time.sleep(0.05)


class Broken(io.StringIO):
    def write(self, text):
        raise OSError(28, 'No space left on device')

    def flush(self):
        raise OSError(28, 'No space left on device')


@pytest.mark.parametrize('stream', [None, 'closed', 'broken'])
def test_without_a_stderr_the_work_goes_on(monkeypatch, stream):
    given = None if stream is None else Broken() if stream == 'broken' else io.StringIO()
    if stream == 'closed':
        given.close()
    monkeypatch.setattr('sys.stderr', given)
    monkeypatch.setattr(progress, 'LOG_INTERVAL', 0.0)
    with Progress(3, 'steps') as bar:
        bar.update(1, loss=0.5)
        bar.note('a note')
        bar.update(2)
    assert list(progress.progress([1, 2], 'items')) == [1, 2]
    with activity('compiling', interval=0.01):
        time.sleep(0.03)
    run = RunProgress(2, every_seconds=0.0)
    run.update(1, 'x')
    run.note('y')
    run.close()


@pytest.mark.parametrize('closed', ['2>&-', '>&- 2>&-', '<&- >&- 2>&-', '2>/dev/full'])
def test_commands_of_services_do_their_work(tmp_path, closed):
    """Standard streams that are closed from the beginning, as services have them."""
    out = tmp_path / 'out.txt'
    program = textwrap.dedent(f"""
        import sys, types
        from avatar_jax import cli
        from avatar_jax.progress import progress, activity
        def run(args):
            file = open({str(out)!r}, 'w')
            for _ in progress(range(3), 'steps'):
                print('to stdout')
                print('to stderr', file=sys.stderr)
            with activity('compiling'):
                import os
                for number in (1, 2):
                    try: os.write(number, b'from a library\\n')
                    except OSError: pass
            file.write('done')
            file.close()
        module = types.ModuleType('m')
        module.run, module.add_arguments = run, lambda parser: None
        sys.modules['m'] = module
        cli.COMMANDS['fake'] = ('m', 'a test')
        sys.exit(cli.main(['fake']))
    """)
    done = subprocess.run(
        f'{shlex.quote(sys.executable)} -c {shlex.quote(program)} {closed}', shell=True, timeout=120, check=False
    )
    assert done.returncode == 0 and out.read_text() == 'done'
