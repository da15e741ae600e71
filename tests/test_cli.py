"""The command line: one-line errors with suggestions, exit statuses, configs with overrides, batches."""

import importlib
import os
import subprocess
import sys
import textwrap
import time
import types

import pytest

from avatar_jax import cli
from avatar_jax.errors import UserError
from launch.batch import Batch
from launch.config_args import add_config_argument, config_path, load_config, load_run, shipped_configs


@pytest.fixture
def command(monkeypatch):
    """Registers a subcommand ``fake`` that runs the given function with its parsed arguments."""

    def register(run, config=False):
        module = types.ModuleType('launch_fake')
        module.run = run

        def add_arguments(parser):
            parser.add_argument('--steps', type=int, default=3)
            parser.add_argument('--camera', choices=('track', 'orbit', 'fixed'), default='track')
            if config:
                add_config_argument(parser)

        module.add_arguments = add_arguments
        monkeypatch.setitem(sys.modules, 'launch_fake', module)
        monkeypatch.setitem(cli.COMMANDS, 'fake', ('launch_fake', 'a test'))

    return register


def last_line(capsys):
    err = capsys.readouterr().err
    assert 'Traceback' not in err
    return err.strip().splitlines()[-1]


def test_runs_the_subcommand(command):
    seen = []
    command(lambda args: seen.append((args.steps, args.camera)))
    assert cli.main(['fake', '--steps', '7', '--camera', 'orbit']) == 0
    assert seen == [(7, 'orbit')]
    command(lambda args: 5)
    assert cli.main(['fake']) == 5


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['invrt'], "invrt: unknown command; did you mean 'invert'?"),
        (['zzz'], 'choose one of demo, invert'),
        (['--versoin'], 'did you mean --version?'),
        (['fake', '--stesp', '4'], '--stesp: unknown option; did you mean --steps?'),
        (['fake', '--zzz'], '--zzz: unknown option; see avatar-jax fake --help'),
        (['fake', '--step', '4'], '--step: unknown option; did you mean --steps?'),  # no silent abbreviations
        (['fake', 'extra'], 'extra: unexpected argument'),
        (['fake', '--steps', 'many'], '--steps: invalid int value'),
        (['fake', '--camera', 'trakc'], '--camera: invalid choice'),
        (['fake', '--steps'], '--steps: expected one argument'),
        (['fake', '--config.seed=3'], '--config.seed: unknown option'),
    ],
)
def test_mistakes_are_one_line_and_status_two(command, capsys, argv, message):
    command(lambda args: pytest.fail('must not run'))
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and message in err and err.startswith('avatar-jax: error: ')


def test_no_command_shows_the_overview(capsys):
    assert cli.main([]) == 2
    err = capsys.readouterr().err
    assert all(name in err for name in cli.COMMANDS)


def raising(error):
    def run(args):
        raise error

    return run


def test_user_errors_with_and_without_traceback(command, capsys, monkeypatch):
    command(raising(UserError('a.png: no such file; check the path')))
    assert cli.main(['fake']) == 2
    assert capsys.readouterr().err == 'avatar-jax: error: a.png: no such file; check the path\n'
    monkeypatch.setenv('AVATAR_DEBUG', '1')
    assert cli.main(['fake']) == 2
    assert 'Traceback' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('error', 'status', 'message'),
    [
        (KeyboardInterrupt(), 130, 'interrupted'),
        (OSError(28, 'No space left on device', 'out/a.png'), 2, 'out/a.png: could not be written: no space left'),
        (ValueError('store: [Errno 28] No space left on device'), 2, 'no space left on the disk'),
        (PermissionError(13, 'Permission denied', 'out'), 2, 'out: permission denied; check the path'),
        (MemoryError(), 2, 'not enough memory'),
        (ModuleNotFoundError("No module named 'grain'", name='grain.python'), 2, "pip install 'avatar-jax[data]'"),
    ],
)
def test_known_troubles_are_explained(command, capsys, error, status, message):
    command(raising(error))
    assert cli.main(['fake']) == status
    assert message in last_line(capsys)


@pytest.mark.parametrize('error', [ZeroDivisionError('x'), ModuleNotFoundError('no x', name='x'), OSError('odd')])
def test_bugs_show_a_traceback_and_status_one(command, capsys, error):
    command(raising(error))
    assert cli.main(['fake']) == 1
    err = capsys.readouterr().err
    assert 'Traceback' in err and 'please report' in err


def test_sigterm_unwinds(command, capsys):
    unwound = []

    def run(args):
        try:
            os.kill(os.getpid(), 15)
            time.sleep(5)
        finally:
            unwound.append(True)

    command(run)
    assert cli.main(['fake']) == 143 and unwound == [True]
    assert 'terminated' in last_line(capsys)


def test_help_is_instant_and_imports_nothing_heavy():
    """Neither the overview nor the help of any command; the time is that of the processor, whatever else runs here."""
    program = textwrap.dedent("""
        import sys, time
        begin = time.process_time()
        import avatar_jax
        assert time.process_time() - begin < 0.1
        from avatar_jax import cli
        for command in ([], *([name] for name in cli.COMMANDS)):
            begin = time.process_time()
            try:
                cli.main([*command, '--help'])
            except SystemExit as stop:
                assert stop.code == 0
            assert time.process_time() - begin < 0.5, command
            heavy = {'jax', 'numpy', 'cv2', 'av', 'PIL', 'flax', 'ml_collections'} & set(sys.modules)
            assert not heavy, (command, heavy)
    """)
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert 'invert' in done.stdout and 'bench' in done.stdout


@pytest.mark.parametrize('name', sorted(cli.COMMANDS))
def test_every_subcommand_has_its_module(name):
    module = importlib.import_module(cli.COMMANDS[name][0])
    parser = cli.Parser(prog=name)
    module.add_arguments(parser)
    assert callable(module.run) and '--help' in parser.format_help()


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / 'experiment.py'
    path.write_text(
        textwrap.dedent("""
        from ml_collections import ConfigDict
        def get_config(variant=''):
            if variant not in ('', 'tiny'):
                raise ValueError(f"variant '{variant}': choose tiny")
            model = {'width': 64, 'names': ('a',), 'part': {'batch': 1}}
            config = ConfigDict({'steps': 100, 'rate': 1e-3, 'model': model, 'note': ''})
            if variant == 'tiny':
                config.model.width = 4
            return config
    """)
    )
    return path


def test_config_variant_and_overrides(config_file):
    config = load_config(
        f'{config_file}:tiny', ['--config.steps=5', '--config.model.names', "('b', 'c')", '--config.rate=1']
    )
    assert (config.steps, config.model.width, config.model.names, config.rate) == (5, 4, ('b', 'c'), 1.0)
    assert load_config(str(config_file)).model.width == 64
    with pytest.raises((AttributeError, KeyError)):
        config.new_field = 3


@pytest.mark.parametrize(
    ('spec', 'overrides', 'message'),
    [
        ('', ['--config.stesp=5'], r'--config.stesp=5: .*did you mean .steps.'),
        ('', ['--config.model.widht=5'], r'--config.model.widht=5: model has no option .widht.; did you mean .width.'),
        ('', ['--config.widht=5'], r'no option .widht.; did you mean .model.width.'),
        ('', ['--config.net.part.bach=5'], r'no option .net.; did you mean .model.part.batch.'),
        ('', ['--config.steps=many'], '--config.steps=many: .*invalid literal'),
        (':tiyn', [], 'choose tiny'),
    ],
)
def test_config_mistakes(config_file, spec, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(f'{config_file}{spec}', overrides)
    assert '\n' not in str(caught.value)


def test_fields_that_a_training_has_not_are_all_named_with_their_file(tmp_path):
    file = tmp_path / 'own.py'
    file.write_text(
        'from ml_collections import ConfigDict\n'
        "def get_config():\n    return ConfigDict({'method': 'eg3d', 'sed': 1, 'train': {'batch': 4}, 'ouptut': {}})\n"
    )
    with pytest.raises(UserError) as caught:
        load_run(str(file))
    said = str(caught.value)
    assert said.startswith(f'--config {file}: ') and '\n' not in said
    assert "sed: unknown option; did you mean 'seed'?" in said and "did you mean 'output'?" in said


def test_config_files_that_do_not_work(tmp_path):
    (tmp_path / 'syntax.py').write_text('def get_config(:\n')
    (tmp_path / 'dict.py').write_text('def get_config():\n    return {}\n')
    (tmp_path / 'none.py').write_text('x = 1\n')
    for name, message in [
        ('syntax', 'SyntaxError'),
        ('dict', 'returned dict'),
        ('none', 'AttributeError'),
        ('gone', 'no such file'),
    ]:
        with pytest.raises(UserError, match=message):
            load_config(str(tmp_path / f'{name}.py'))


def test_shipped_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, path in shipped_configs().items():
        assert config_path(f'configs/{name}.py') == config_path(name) == path
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'own.py').write_text('')
    assert config_path('configs/own.py').resolve() == tmp_path / 'configs' / 'own.py'


def test_overrides_reach_the_subcommand(command, config_file):
    seen = []
    command(lambda args: seen.append((args.config, args.overrides, args.steps)), config=True)
    argv = ['fake', '--config', f'{config_file}:tiny', '--config.steps=5', '--steps', '9', '--config.rate', '2']
    assert cli.main(argv) == 0
    assert seen == [(f'{config_file}:tiny', ('--config.steps=5', '--config.rate', '2'), 9)]


def test_batch_goes_on_and_lists_what_was_skipped(capsys):
    def work(item):
        if item % 2:
            raise UserError(f'{item}: is odd; give an even number')
        return 10 * item

    batch = Batch()
    batch.run([0, 1, 2, 3, 4], work)
    assert batch.results == [0, 20, 40] and [name for name, _ in batch.skipped] == ['1', '3']
    assert batch.finish() == 2
    err = capsys.readouterr().err
    assert '2 of 5 inputs were skipped' in err and '  3: is odd; give an even number' in err
    clean = Batch()
    clean.run([2], work)
    assert clean.finish() == 0
    with pytest.raises(ZeroDivisionError):
        clean.run([1], lambda item: 1 / 0)
    lazy, asked = Batch(), []
    each = lazy.each([0, 1, 2], lambda item: asked.append(item) or work(item))
    assert next(each) == 0 and asked == [0] and list(each) == [20] and asked == [0, 1, 2]
    assert (lazy.done, lazy.results) == (2, []) and lazy.finish() == 2
    assert '1 of 3 inputs were skipped' in capsys.readouterr().err
