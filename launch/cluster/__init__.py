"""Wrappers that start one ``avatar-jax`` command as several processes: on one machine, under Slurm, on TPU pods.

    python -m launch.cluster.local --processes 4 --dry-run -- train --config configs/NAME.py --out runs/a
    python -m launch.cluster.slurm --nodes 4 --gpus-per-node 8 --dry-run -- train --config ... --out ...
    python -m launch.cluster.tpu --name a --accelerator v5p-64 --zone ... --dry-run -- train --config ... --out ...

Everything after ``--`` is the command. ``--dry-run`` prints what would run and runs nothing. All of them rely on two
promises of the command: it exits with status 75 when it was asked to stop and has written a checkpoint, and with
``--resume`` it continues, or starts when there is nothing to continue.
"""
