"""A generator from another method's weights as a model to train personal avatars on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from avatar_jax.errors import UserError
from avatar_jax.io.weights import check_tree, load_weights
from avatar_jax.methods.eg3d.files import load_generator
from avatar_jax.methods.hfagp.config import EncoderConfig, HFAGPConfig, ModelConfig
from avatar_jax.methods.hfagp.model import abstract, average_code, generator_of, init_personal
from avatar_jax.models.triplane import GeneratorConfig

HEADS_SIZE = 128  # side of the pictures of procedural heads
COEFFICIENTS = 64


def load_prior(path: str | os.PathLike) -> tuple[dict[str, Any], ModelConfig, str, dict[str, Any]]:
    """A generator's weights (``eg3d.files.load_generator``) as a model without a person.

    Returns:
        variables of the generator alone, ``prior_config`` with the conventions that the file knows, its SHA-256 and
        provenance.

    Raises:
        UserError: missing or damaged file, or one without a tri-plane generator.
    """
    found, generator, sha256 = load_generator(path)
    weights = load_weights(path)
    about = {k: weights.config[k] for k in ('basis', 'label_mode') if isinstance(weights.config.get(k), str)}
    variables = {collection: {'generator': tree} for collection, tree in found.items()}
    return variables, prior_config(generator, **about), sha256, weights.provenance


def prior_config(generator: GeneratorConfig, **conventions: Any) -> ModelConfig:
    """How avatars are trained on a generator: in minutes for procedural heads, as in the paper for others."""
    if generator.img_resolution == HEADS_SIZE:
        return ModelConfig.heads('paper', 'coefficients', generator=generator, **conventions)
    settings = HFAGPConfig.paper('coefficients')
    encoder = EncoderConfig(coefficients=COEFFICIENTS, sound_features='mel')
    settings = replace(settings, encoder=encoder, basis=replace(settings.basis, start='average'))
    return ModelConfig.of(generator, settings, **conventions)


def knows_a_person(variables: Mapping[str, Any]) -> bool:
    """Whether a model has a basis and encoders beside its generator."""
    return 'basis' in variables['params']


def with_person(
    variables: Mapping[str, Any],
    config: ModelConfig,
    key: jax.Array,
    further: bool,
    source: str,
    rows: jax.Array | None = None,
) -> dict[str, Any]:
    """Variables to begin a training with: the model's generator, and a fresh person or (``further``) the model's.

    ``rows`` [L,d]: code that a fresh person starts from; None: as configured.

    Raises:
        UserError: the model's person is wanted, but there is none, or one with other drivers or another basis.
    """
    if further and not knows_a_person(variables):
        raise UserError(f'--further: {source} holds a generator alone, no basis that could be trained further')
    own = {c: {'generator': tree} for c, tree in generator_of(variables).items()}
    if further:
        found = {**own, 'params': dict(variables['params'])}
        try:
            check_tree(source, found, abstract(config))
        except UserError as error:
            raise UserError(f'--further: {error}; leave out what differs, or --further') from error
        return found
    personal = init_personal(config, key, average_code(own), rows)
    return {**own, 'params': {**own['params'], **personal}}
