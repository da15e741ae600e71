"""The notebooks run from top to bottom, and the .ipynb files are made from the .py sources beside them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / 'notebooks'
SOURCES = sorted(FOLDER.glob('*.py'))
SAYS = {'01_portrait_to_animation': 'dB in the head mask', '02_decoupling_by_inverting': 'error left'}


def test_there_are_notebooks():
    assert SOURCES


@pytest.mark.parametrize('source', SOURCES, ids=lambda p: p.stem)
def test_only_public_names_of_the_library_are_used(source):
    assert not re.findall(r'^ *(?:from avatar_jax|import avatar_jax\.).*', source.read_text(), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.notebooks
@pytest.mark.parametrize('source', SOURCES, ids=lambda p: p.stem)
def test_source_runs(source):
    # As a script in a process of its own: what a kernel does, without a kernel's start-up and without its time-outs.
    environment = os.environ | {'AVATAR_NOTEBOOK_STEPS': '2', 'MPLBACKEND': 'agg'}
    done = subprocess.run(
        [sys.executable, str(source)],
        env=environment,
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert SAYS[source.stem] in done.stdout


@pytest.mark.parametrize('source', SOURCES, ids=lambda p: p.stem)
def test_ipynb_has_the_same_cells(source):
    jupytext = pytest.importorskip('jupytext')
    notebook = json.loads(source.with_suffix('.ipynb').read_text())
    cells = [(c.cell_type, c.source) for c in jupytext.read(source).cells]
    stored = [(c['cell_type'], ''.join(c['source'])) for c in notebook['cells']]
    assert stored == cells, f'run: jupytext --to ipynb {source.name}'
    assert any(o.get('data', {}).get('image/png') for c in notebook['cells'] for o in c.get('outputs', ()))
