"""Worker processes for rendering."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Fresh (spawned) processes with one thread of linear algebra each.

    The caller's script must be importable, that is, start its work under ``if __name__ == '__main__'``.
    """
    for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
        os.environ.setdefault(name, '1')  # read when numpy is imported in the child
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context('spawn'))
