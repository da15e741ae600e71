"""What can be chosen about GPAvatar's training: terms of the loss, length, batches, optimizer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from avatar_jax.checks import Check
from avatar_jax.configure import of_length
from avatar_jax.faces.importance import Importance
from avatar_jax.train.optimizers import OptimizerConfig


@dataclass(frozen=True)
class LossConfig:
    """Terms and weights (section 3.5 of the paper).

    Attributes:
        pixel: weight of the mean absolute error of every image. squared: of the mean squared error.
        perceptual: weight of the perceptual distance.
        coarse: also compare the first pass's image.
        box: weight of the same two terms inside the enlarged face box; 0 leaves them out.
        box_size: side to which face boxes are resized.
        norm: weight of the L2 norm of all opacities of the first pass together.
        opacity: weight of the squared difference of the rendered opacity to the head's mask (training data has it).
        depth: weight, in steps of rays, of the distance between the rendered surface and the true one, which is known
            with ``data.source='heads'``; some samples are then taken around the true surface.
        network: of the perceptual distance: 'alexnet', 'pyramid' (an image pyramid, no network), 'none', or 'auto':
            AlexNet if its weights are given, else pyramid.
    """

    pixel: float = 1.0
    squared: float = 0.0
    perceptual: float = 1e-2
    coarse: bool = True
    box: float = 0.5
    box_size: int = 256
    norm: float = 1e-5
    opacity: float = 0.0
    depth: float = 0.0
    network: str = 'auto'

    def __post_init__(self):
        Check(self, 'loss').one_of('network', 'auto', 'alexnet', 'pyramid', 'none')


@dataclass(frozen=True)
class TrainConfig:
    """What surrounds a training step.

    Attributes:
        iterations, batch_size: length of the run; people per step over all devices.
        sources: portraits of each person in a step. drop_sources: probability of keeping only the first of them.
        drivers: frames that are rendered from the same portraits in a step.
        rays, ray_iterations: in the first ``ray_iterations`` steps, ``rays`` rays through random pixels are rendered
            instead of whole pictures, without super-resolution: faster where whole pictures are expensive.
            importance: how likely a pixel is drawn. whole_every: every N-th of these steps renders whole pictures all
            the same; 0: none. whole_trains: which parameters learn from whole pictures: 'all' or only 'sr' (those of
            super-resolution, for which no gradient has to go through the rendering).
        first: initialisation of the networks: 'pytorch' (release) or 'he' (``keep_variance`` of ``styleunet``,
            ``head`` and ``fusion``; smaller point features and query, which learn faster).
        optimizer: of all parameters. slow: factor on the learning rate of the style mappings (``style_mlp``,
            ``final_linear``).
        milestones, gamma: after each of these steps the learning rate is multiplied by gamma.
        divisor: training pictures are divided by 255, or by 256 as released.
        ema: decay of the moving average of the parameters; 0: no average (release).
    """

    iterations: int = 200_000
    batch_size: int = 8
    sources: int = 2
    drop_sources: float = 0.3
    drivers: int = 1
    rays: int = 0
    ray_iterations: int = 0
    importance: Importance = dataclasses.field(default_factory=Importance)
    whole_every: int = 0
    whole_trains: str = 'all'
    first: str = 'pytorch'
    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig('adam', 1e-4, 0.0, 0.99))
    slow: float = 0.1
    milestones: tuple[int, ...] = ()
    gamma: float = 0.2
    divisor: int = 255
    ema: float = 0.0

    def __post_init__(self):
        check = Check(self, 'train')
        check.one_of('divisor', 255, 256)
        check.one_of('first', 'pytorch', 'he')
        check.one_of('whole_trains', 'all', 'sr')
        check.at_least(1, 'iterations', 'batch_size', 'sources', 'drivers')
        check.within(0, 1, 'drop_sources')
        check.at_least(0, 'rays', 'ray_iterations', 'whole_every')
        check.need(not self.ray_iterations or self.rays > 0, 'rays', 'ray_iterations need at least 1')
        check.decay('ema')

    def of_length(self, iterations: int) -> TrainConfig:
        """The same course in another number of steps (``configure.of_length``)."""
        return of_length(self, iterations, 'ray_iterations', 'milestones')
