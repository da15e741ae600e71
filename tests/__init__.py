"""Tests. Tracing and compiling make millions of small objects, few of them in cycles: Python looks for these less often
here, which spares a quarter of the time of tracing, also in the processes that tests start.
"""

import gc

gc.set_threshold(100_000, 20, 50)
