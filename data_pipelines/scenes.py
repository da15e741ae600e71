"""Two people that no training has seen: one portrait, another's motion, and the true picture of every frame."""

from __future__ import annotations

from typing import Any

import numpy as np

SWING = np.deg2rad(20.0)  # of the camera, to both sides, once per clip


def make_scene(seed: int, frames: int, size: int) -> dict[str, Any]:
    """Two unseen people: the first one's portrait, the second one's motion under a swinging camera, and the truth."""
    from avatar_jax.eval.cases import keep_expression, source_frame
    from avatar_jax.eval.options import ProtocolConfig
    from avatar_jax.ops.windows import RADIUS, windows
    from avatar_jax.procedural import EXPRESSION_NAMES, render_head
    from avatar_jax.types import Camera, Portrait
    from data_pipelines.cameras import pose_labels, seen_from
    from data_pipelines.clips import evaluation_clips

    person, driver = evaluation_clips(2, seed, 'test', num_frames=max(frames, 2 * RADIUS))
    channels = [EXPRESSION_NAMES.index(n) for n in ('blink_l', 'blink_r')]
    first = source_frame(person.angle[:, 1], person.expression[:, channels].max(-1), ProtocolConfig())
    head = person.render(first, resolution=size)
    motion = person.motion()
    portrait = Portrait(
        image=np.float32(2 * head.rgb - 1),
        camera=Camera.from_label(person.labels()[first]),
        expression=motion.expression[first],
        angle=motion.angle[first],
        translation=motion.translation[first],
        landmarks=head.landmarks,
        mask=head.mask,
        basis=motion.basis,
        source=f'procedural head {person.name}',
    )
    swing = SWING * np.sin(2 * np.pi * np.arange(frames) / frames)
    poses = [seen_from(driver.angle[t], driver.translation[t], swing[t]) for t in range(frames)]
    angle, translation = (np.float32(np.stack(x)) for x in zip(*poses, strict=True))
    labels = pose_labels(angle, translation)
    rows = np.concatenate([driver.expression[:frames], angle, translation], 1)

    def show(who):
        return [
            render_head(who.identity, e, c, who.gamma, resolution=size, supersample=2)
            for e, c in zip(driver.expression[:frames], labels, strict=True)
        ]

    true, acting = show(person), show(driver)
    driven = windows(rows)
    source_rows = np.repeat(person.motion_rows()[first][None], 2 * RADIUS + 1, 0)
    return {
        'portrait': portrait,
        'windows': driven,
        'still_windows': keep_expression(driven, source_rows),
        'labels': labels,
        'truth': np.float32(np.stack([2 * h.rgb - 1 for h in true])),
        'driver': np.float32(np.stack([2 * h.rgb - 1 for h in acting])),
        'mask': np.stack([h.mask for h in true]),
        'landmarks': np.stack([h.landmarks for h in true]),
        'fps': driver.options.fps,
        'people': {'source': f'{person.name}, frame {first}', 'driver': driver.name, 'seed': seed},
    }
