"""avatar_jax: 3D talking-head avatars from one portrait, several portraits or one video, in JAX and Flax."""

__version__ = '0.1.0'
