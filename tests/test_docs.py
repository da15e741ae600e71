"""What README and docs/ mention exists: files, links, modules, commands, their options, and fields of configs."""

import ast
import contextlib
import dataclasses
import importlib
import io
import itertools
import re
import runpy
import sys
import warnings
from functools import cache, lru_cache
from pathlib import Path

import pytest

from avatar_jax.cli import COMMANDS, Parser
from avatar_jax.options import option_fields

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
TOPS = ('avatar_jax', 'configs', 'data_pipelines', 'docs', 'launch', 'notebooks', 'tests')
ROOMS = {p.stem for p in (ROOT / 'avatar_jax').iterdir() if p.name[0] not in '_.'}  # folders and single modules
ENDINGS = ('.py', '.md', '.npz', '.safetensors', '.json', '.jsonl', '.cfg')
OPTION = re.compile(r'(?<![\w-])--[a-z][\w.-]*')

MODULE_RUN = r'python -m ((?:data_pipelines|launch)[\w.]*)(.*)'
COMMAND_RUN = r'(?:^|[ (])avatar-jax ([a-z]\w*)(.*)'

each_doc = pytest.mark.parametrize('doc', DOCS, ids=lambda p: p.name)


def snippets(text):
    """Texts that show code: inline code, and the lines of code blocks with their continuations, without comments."""
    blocks = re.findall(r'^ *```\w*\n(.*?)^ *```', text, re.MULTILINE | re.DOTALL)
    outside = re.sub(r'^ *```\w*\n.*?^ *```', '', text, flags=re.MULTILINE | re.DOTALL)
    blocks += re.findall(r'(?:^ {4}.*\n)+', outside, re.MULTILINE)
    for block in blocks:
        for line in re.sub(r'\\\n\s*', '', block).splitlines():
            yield re.sub(r'\s+#.*', '', line.strip())
    for span in re.findall(r'`([^`]+)`', re.sub(r'(?:^ {4}.*\n)+', '\n', outside, flags=re.MULTILINE)):
        yield ' '.join(span.split())


def paths_in(text):
    """Paths of the project in a text, without the variant of a config."""
    for top in TOPS:
        for found in re.findall(rf'(?<![\w/.-]){top}/[\w./*-]+', text):
            if not re.search(r'/[A-Z]+\b', found):  # NAME stands for any
                yield found.rstrip('.')
    for room in ROOMS:  # shortened, in code
        for found in re.findall(rf'`{room}/[\w./*-]+\.py`', text):
            if not re.search(r'/[A-Z]+\b', found):
                yield 'avatar_jax/' + found.strip('`')


def exists(path):
    """Whether it is there; a name without an ending stands for files of that name."""
    return bool(path) and ((ROOT / path).exists() or any(ROOT.glob(path)) or any(ROOT.glob(path + '.*')))


def test_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 130


def sections(path):
    """(line, text of the docstring) of every section of a docstring whose entries are not four columns to the right."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            lines = (ast.get_docstring(node) or '').splitlines()
            for head, first in itertools.pairwise(lines):
                if head in ('Args:', 'Attributes:', 'Returns:', 'Yields:', 'Raises:') and not re.match(
                    r' {4}\S', first
                ):
                    yield getattr(node, 'name', path.stem), head


def test_docstrings_have_one_layout():
    files = [
        p for folder in ('avatar_jax', 'launch', 'data_pipelines', 'configs') for p in (ROOT / folder).rglob('*.py')
    ]
    wrong = [(str(p.relative_to(ROOT)), *where) for p in files for where in sections(p)]
    assert len(files) > 400 and wrong == []


@each_doc
def test_paths_exist(doc):
    missing = {path for path in paths_in(doc.read_text()) if not exists(path)}
    assert not missing


def slug(heading):
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r'[^\w\- ]', '', re.sub(r'[`*]', '', heading).lower()).replace(' ', '-')


@each_doc
def test_links_lead_somewhere(doc):
    for target in re.findall(r'\]\(([^)\s]+)\)', doc.read_text()):
        if '://' in target:
            continue
        name, _, anchor = target.partition('#')
        file = doc.parent / name if name else doc
        assert file.exists(), target
        if anchor:
            headings = re.findall(r'^#+ (.+)$', file.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target


def module_file(parts):
    """The file of the module that the first of these names make, and the names that are left."""
    for n in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:n])
        for file in (path.with_suffix('.py'), path / '__init__.py'):
            if file.is_file():
                return file, parts[n:]
    return None, parts


def has_name(name):
    """Whether a dotted name is a module, or something that a module or a class in it defines (a package: hands on)."""
    file, rest = module_file(name.split('.'))
    if file is None or len(rest) > 2:
        return False
    text = file.read_text()
    if file.name == '__init__.py':
        return all(re.search(rf'\b{r}\b', text) for r in rest)
    return all(re.search(rf'^\s*(?:(?:def|class) {r}\b|{r}\b\s*[:=])', text, re.MULTILINE) for r in rest)


@lru_cache(maxsize=1)
def config_fields():
    """Dotted names of the fields of all shipped configs."""
    from avatar_jax.train.checkpoints import flatten_config
    from launch.config_args import load_config, shipped_configs

    return {name for config in shipped_configs() for name in flatten_config(load_config(config))}


def is_field(name):
    """Whether it is the end of a field's name, or of that of a group of fields; ``*`` stands for anything."""
    pattern = re.compile(r'(?:.*\.)?' + re.escape(name).replace(r'\*', r'\w*') + r'(?:\..*)?')
    return any(pattern.fullmatch(field) for field in config_fields())


@each_doc
def test_modules_functions_and_fields_exist(doc):
    missing, roots = set(), {*ROOMS, *(f.split('.')[0] for f in config_fields())}
    for snippet in snippets(doc.read_text()):
        names = re.findall(r'(?<![\w./-])(?:avatar_jax|configs|data_pipelines|launch|tests)(?:\.\w+)+', snippet)
        for module, imported in re.findall(r'from ([\w.]+) import ([\w, ]+)', snippet):
            names += [f'{module}.{n.strip()}' for n in imported.split(',') if module.split('.')[0] in TOPS]
        missing |= {n for n in names if not n.endswith(ENDINGS) and not has_name(n)}
        short = re.match(r'([a-z]\w*)\.[\w.*]+(?==|$)', snippet)  # `methods.base.Method`, `train.batch`
        if short and short[1] in roots and not short[0].endswith(ENDINGS):
            missing |= set() if has_name(f'avatar_jax.{short[0]}') or is_field(short[0]) else {short[0]}
    assert not missing


@cache
def options_of(program):
    """The options of ``avatar-jax COMMAND``, or of ``python -m MODULE`` by its --help."""
    if program in COMMANDS:
        parser = Parser(prog=program)
        importlib.import_module(COMMANDS[program][0]).add_arguments(parser)
        return set(parser._option_string_actions)
    text, argv = io.StringIO(), sys.argv
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(text), pytest.raises(SystemExit) as ended:
            warnings.simplefilter('ignore')
            sys.argv = [program, '--help']
            runpy.run_module(program, run_name='__main__')
    finally:
        sys.argv = argv
    assert not ended.value.code
    return set(OPTION.findall(text.getvalue()))


def programs_in(snippet):
    """(program, its part of the text) of a snippet: a command, a module, or a module with a command after ``--``."""
    first, _, second = snippet.partition(' -- ')
    module, command = (re.search(p, first) for p in (MODULE_RUN, COMMAND_RUN))
    if module or command:
        yield (module or command).groups()
    elif first.split(' ')[0] in COMMANDS and '--' in first:  # `invert --image FILE`
        yield first.split(' ')[0], first
    if second and '--' in first:
        yield second.split(' ')[0], second


@each_doc
def test_commands_and_options_exist(doc):
    wrong, alone = [], set()
    for snippet in snippets(doc.read_text()):
        found = list(programs_in(snippet))
        for program, rest in found:
            if program not in COMMANDS and module_file([*program.split('.'), '__main__'])[0] is None:
                wrong.append(program)
                continue
            own = re.sub(r'(--beam-options ).*', r'\1', rest)  # the others are those of a runner
            given = {o for o in OPTION.findall(own) if not o.startswith('--config.')}
            wrong += [f'{program} {o}' for o in given - options_of(program)]
        if not found:
            alone |= {o for o in OPTION.findall(snippet) if not o.startswith('--config.')}
    wrong += [o for o in alone if not any(o in options_of(p) for p in all_programs())]
    assert not wrong


@lru_cache(maxsize=1)
def all_programs():
    """All commands, and the modules that the documents run."""
    run = {p for doc in DOCS for snippet in snippets(doc.read_text()) for p, _ in programs_in(snippet)}
    return (*COMMANDS, *sorted(run - set(COMMANDS)))


@each_doc
def test_fields_of_configs_exist(doc):
    from avatar_jax.configure import check_names
    from launch.config_args import load_config

    for snippet in snippets(doc.read_text()):
        spec = re.search(r'--config (\w[\w/.]*(?::[\w,]+)?)', snippet)
        fields = re.findall(r'(--config\.[\w.]+=\S*)', snippet)
        if spec and fields:
            check_names(load_config(spec[1]), fields)


@pytest.mark.parametrize('command', COMMANDS)
def test_every_option_has_a_text(command):
    parser = Parser(prog=command)
    importlib.import_module(COMMANDS[command][0]).add_arguments(parser)
    assert [a.option_strings or a.dest for a in parser._actions if not a.help] == []


def test_every_field_of_drawn_heads_is_an_option():
    for module, config in (('fast_heads', 'FastHeadsConfig'), ('face_crops', 'FaceCropsConfig')):
        module = importlib.import_module(f'data_pipelines.{module}')
        names = {f.name for f in dataclasses.fields(getattr(module, config))}
        assert {*option_fields(getattr(module, config)), 'version'} == names


def test_what_is_missing_is_noticed():
    text = 'See `avatar_jax/no_such.py`, `methods/none.py` and [this](docs/none.md).'
    assert sorted(p for p in paths_in(text) if not exists(p)) == [
        'avatar_jax/methods/none.py',
        'avatar_jax/no_such.py',
        'docs/none.md',
    ]
    assert not has_name('avatar_jax.methods.base.NoSuchThing') and has_name('avatar_jax.methods.base.Method.options')
    assert not has_name('avatar_jax.no_module.function')
    assert is_field('train.batch') and is_field('loss.blur_*') and not is_field('train.no_such')
    found = dict(programs_in('python -m launch.cluster.local --dry-run -- train --out a'))
    assert found == {'launch.cluster.local': ' --dry-run', 'train': 'train --out a'}
    assert '--dry-run' in options_of('launch.cluster.local') and '--jitter' in options_of('invert')
    assert '--no-such' not in options_of('invert')
