"""What tells faces from other things, solved anew in trained weights of the landmark network."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from avatar_jax.bundled import face_net
from avatar_jax.configure import from_plain
from avatar_jax.io.atomic import write_json
from avatar_jax.io.weights import load_weights, save_weights
from avatar_jax.models.perception.face_net import FACE_NET_METHOD, FaceNetConfig


def solve_again(weights: str, data: dict, held_out: dict, out: Path) -> dict:
    """Solves the row ``present`` of given weights anew; writes weights and report; returns the report."""
    old = load_weights(weights, method=FACE_NET_METHOD)
    net = from_plain(FaceNetConfig, old.config)
    before = jax.tree.map(lambda a: np.asarray(a, np.float32), {k: old.variables[k] for k in ('params', 'batch_stats')})
    variables = face_net.solve_present(before, net, data)
    report = {
        'held_out': face_net.evaluate(variables, net, held_out)[0],
        'held_out_before': face_net.evaluate(before, net, held_out)[0],
        'solved_on': {'heads': len(data['rgb']), 'source': 'procedural heads and drawn animals, augmented'},
        'weights_before': old.sha256,
    }
    variables = {**variables, 'calibration': old.variables['calibration']}
    record = {'command': 'launch.train_face_net --present', **report, 'before': old.provenance}
    out.mkdir(parents=True, exist_ok=True)
    report['sha256'] = save_weights(
        out / 'face_net.safetensors',
        variables,
        method=FACE_NET_METHOD,
        config=net,
        provenance=record,
        storage='float16',
    )
    write_json(out / 'report.json', report)
    return report
