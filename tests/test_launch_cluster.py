"""Wrappers for several processes: what a dry run prints, how the local one supervises, refusals."""

import json
import re
import sys
import time

import pytest

from avatar_jax.errors import UserError
from launch.cluster import local, slurm, supervise, tpu
from launch.cluster.command import main

TRAIN = ['--', 'train', '--config', 'configs/otavatar_heads.py', '--out', '/shared/run 1']


def dry(wrapper, capsys, *options, command=TRAIN):
    assert wrapper.run([*options, '--dry-run', *command]) == 0
    return capsys.readouterr().out


def test_local_starts_one_process_for_each_gpu(capsys):
    lines = dry(local, capsys, '--processes', '4', '--gpus-each', '2', '--port', '1234').splitlines()
    assert len(lines) == 4 and lines[3].startswith('CUDA_VISIBLE_DEVICES=6,7 ')
    assert lines[3].endswith("--out '/shared/run 1' --coordinator localhost:1234 --num-processes 4 --process-id 3")
    (alone,) = dry(local, capsys, '--cpu-devices', '2').splitlines()
    assert 'JAX_PLATFORMS=cpu' in alone and 'device_count=2' in alone and '--coordinator' not in alone
    (again,) = dry(local, capsys, '--restarts', '3').splitlines()
    assert again.endswith('--resume')


def test_local_shares_evaluations_and_then_makes_the_report(capsys):
    command = ['--', 'evaluate', '--out', 'r']
    first, second, whole = dry(local, capsys, '--processes', '2', command=command).splitlines()
    assert first.endswith('evaluate --out r --share 1/2') and second.endswith('evaluate --out r --share 2/2')
    assert whole.endswith('evaluate --out r') and first.startswith('CUDA_VISIBLE_DEVICES=0 ')
    assert len(dry(local, capsys, '--processes', '2', command=['--', 'invert', '--image', 'a']).splitlines()) == 2
    assert len(dry(local, capsys, command=command).splitlines()) == 1


@pytest.mark.parametrize(
    ('codes', 'status'), [([0, 5], 5), ([2, 0], 0), ([-9, -9], -9), ([-9, 0, 0], 0), ([1], 1)], ids=str
)
def test_what_follows_the_shares(codes, status, monkeypatch):
    """Status of each round; a lost process starts its round again, and the report follows when all went through."""
    left, seen = list(codes), []
    monkeypatch.setattr(local, 'supervise', lambda s, apart=False: seen.append((len(s), apart)) or left.pop(0))
    assert local.run(['--processes', '3', '--restarts', '1', '--', 'evaluate', '--out', 'r']) == status
    reported = codes[0] in (0, 2) or codes == [-9, 0, 0]
    assert left == [] and seen == [(3, True)] * (len(codes) - reported) + [(1, False)] * reported


def test_processes_apart_go_on_when_one_is_lost():
    ends = ['raise SystemExit(3)', 'import time; time.sleep(0.5)', 'import os, signal; os.kill(os.getpid(), 9)']
    started = time.monotonic()
    assert supervise.supervise([({}, [sys.executable, '-c', text]) for text in ends], apart=True) == -9
    assert time.monotonic() - started >= 0.5
    assert supervise.supervise([({}, [sys.executable, '-c', text]) for text in ends[:2]], apart=True) == 3


def test_slurm_script_asks_for_a_task_per_gpu_a_warning_and_a_requeue(capsys):
    text = dry(slurm, capsys, '--nodes', '2', '--gpus-per-node', '4', '--partition', 'gpu', '--setup', 'source env.sh')
    for line in (
        '#SBATCH --nodes=2',
        '#SBATCH --ntasks-per-node=4',
        '#SBATCH --signal=TERM@120',
        '#SBATCH --partition=gpu',
    ):
        assert re.search(rf'^{re.escape(line)}( |$)', text, re.MULTILINE), line
    assert text.startswith('#!/bin/bash\n') and '\nsource env.sh\n' in text
    assert (
        "avatar-jax train --config configs/otavatar_heads.py --out '/shared/run 1' --resume --coordinator auto" in text
    )
    assert '"$status" -eq 75' in text and 'scontrol requeue' in text


def test_tpu_pods_by_queued_resource_and_on_gke(capsys):
    lines = dry(
        tpu, capsys, '--name', 'a', '--accelerator', 'v5p-64', '--zone', 'z', '--spot', '--setup', 'pip install x'
    )
    create, wait, setup, train = lines.splitlines()
    assert 'queued-resources create a --node-id=a --accelerator-type=v5p-64 --runtime-version=v2-alpha-tpuv5' in create
    assert create.endswith('--spot') and 'ACTIVE' in wait and '--worker=all' in setup and 'pip install x' in setup
    assert '--resume --coordinator auto' in train and '/shared/run 1' in train
    text = dry(
        tpu,
        capsys,
        '--gke',
        '--name',
        'a',
        '--accelerator',
        'tpu-v5p-slice',
        '--topology',
        '4x4x4',
        '--image',
        'i',
        '--hosts',
        '16',
    )
    manifest = json.loads(text[text.index('{') : text.rindex('}') + 1])
    job = manifest['spec']['replicatedJobs'][0]['template']['spec']
    pod = job['template']['spec']
    assert job['parallelism'] == 16 and pod['containers'][0]['command'][-3:] == ['--resume', '--coordinator', 'auto']
    assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == '4x4x4'


@pytest.mark.parametrize(
    ('wrapper', 'arguments', 'message'),
    [
        (local, ['--processes', '2'], 'give the command after --'),
        (local, ['--processes', '0', *TRAIN], '--processes 0: must be at least 1'),
        (local, ['--', 'track', '--image', 'x'], 'track: only train, bench, invert, evaluate and ablate run'),
        (slurm, ['--', 'invert', '--image', 'x'], 'invert: only train and bench run'),
        (local, ['--', 'evaluate', '--share', '1/2'], '--share: is set by the wrapper'),
        (slurm, [*TRAIN, '--process-id=1'], '--process-id: is set by the wrapper'),
        (slurm, ['--', 'train', '--config', 'x'], 'give --out'),
        (tpu, ['--name', 'a', '--accelerator', 'v5p-8', *TRAIN], '--zone: needed'),
        (tpu, ['--name', 'a', '--accelerator', 'v9-8', '--zone', 'z', *TRAIN], 'unknown family'),
        (tpu, ['--gke', '--name', 'a', '--accelerator', 't', *TRAIN], '--topology: needed with --gke'),
    ],
)
def test_refusals(wrapper, arguments, message, capsys):
    with pytest.raises(UserError, match=message):
        wrapper.run(arguments)
    assert main(wrapper.run, arguments) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_programs_of_a_cluster_that_are_not_here_are_named(monkeypatch, capsys):
    monkeypatch.setenv('PATH', '/nowhere')
    assert main(slurm.run, TRAIN) == 2
    assert 'sbatch: not found' in capsys.readouterr().err


def test_one_lost_process_ends_the_others(monkeypatch):
    monkeypatch.setattr(supervise, 'GRACE', 0.3)
    code = 'import os, sys, time; os.kill(os.getpid(), 9) if sys.argv[1] == "1" else time.sleep(60)'
    begin = time.monotonic()
    assert supervise.supervise([({}, [sys.executable, '-c', code, str(i)]) for i in range(2)]) == -9
    assert time.monotonic() - begin < 30
    stop = [({}, [sys.executable, '-c', f'import sys; sys.exit({status})']) for status in (75, 75)]
    assert supervise.supervise(stop) == 75
