"""The programs behind the ``avatar-jax`` command, one module per subcommand.

Each module (``launch/invert.py`` behind ``avatar-jax invert``, and so on; ``bench`` is ``launch/benchmark.py``) has

* ``add_arguments(parser: argparse.ArgumentParser) -> None``: its options;
* ``run(args: argparse.Namespace) -> int | None``: the work; the return value is the exit status (None is 0);

and imports nothing heavy (jax, cv2, av, ...) at module level, so that ``avatar-jax <command> --help`` is instant.
A mistake of the user is raised as ``avatar_jax.errors.UserError``; ``avatar_jax.cli`` turns it into one line and
status 2. Programs that are no subcommand (``python -m launch.train_prior``) have the same two functions, and
``launch.program`` starts them. ``launch.batch`` goes on after a failing input, ``launch.config_args`` reads ``--config
file.py:variant``.
"""
