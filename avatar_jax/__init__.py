"""3D talking-head avatars from one portrait, several portraits or one video, in JAX and Flax.

    import avatar_jax as aj

    model = aj.load_model('heads128')                          # a shipped weight file, or a path
    [portrait] = aj.read_portraits(['me.jpg'], model)
    built = model.build(portrait)                              # avatar, scores, curves, report
    motion = aj.read_motion('speech:3', model)                 # or a motion file, coefficients, a video
    frames = model.frames(built.avatar, motion, aj.cameras(model, motion))
    aj.write_video('me.mp4', frames.rgb, motion.fps)

Names are imported when they are first used: ``import avatar_jax`` alone loads nothing else.
"""

import importlib
from typing import Any

__version__ = '0.1.0'

_PLACES = {
    # Portraits to avatars to videos.
    'Avatar': 'avatar_jax.types',
    'Built': 'avatar_jax.methods.base',
    'Camera': 'avatar_jax.types',
    'Drive': 'avatar_jax.types',
    'Frames': 'avatar_jax.types',
    'Method': 'avatar_jax.methods.base',
    'Model': 'avatar_jax.methods.model',
    'Motion': 'avatar_jax.types',
    'Portrait': 'avatar_jax.types',
    'Source': 'avatar_jax.methods.base',
    'UserError': 'avatar_jax.errors',
    'animate': 'avatar_jax.methods.render',
    'cameras': 'avatar_jax.methods.reading',
    'load_avatar': 'avatar_jax.methods.model',
    'load_model': 'avatar_jax.methods.model',
    'method': 'avatar_jax.methods.base',
    'read_motion': 'avatar_jax.methods.reading',
    'read_portraits': 'avatar_jax.methods.reading',
    'save_avatar': 'avatar_jax.methods.model',
    'write_video': 'avatar_jax.io.video',
    # Motion files.
    'load_motion': 'avatar_jax.io.motion',
    'save_motion': 'avatar_jax.io.motion',
    # Experiments: the shared generator, and decoupling-by-inverting as a function of any two networks.
    'DecouplingConfig': 'avatar_jax.inversion.decoupling',
    'Group': 'avatar_jax.train.state',
    'Objective': 'avatar_jax.inversion.decoupling',
    'OptimizerConfig': 'avatar_jax.train.optimizers',
    'Optimizers': 'avatar_jax.inversion.decoupling',
    'TrainState': 'avatar_jax.train.state',
    'TriPlaneGenerator': 'avatar_jax.models.triplane',
    'decoupling_iteration': 'avatar_jax.inversion.decoupling',
    'make_optimizer': 'avatar_jax.train.optimizers',
    'step_key': 'avatar_jax.train.state',
}
__all__ = ['__version__', *_PLACES]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        value = getattr(importlib.import_module(_PLACES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
