"""What has a worker's numerical libraries rest between batches.

Their threads wait for the next product by running in a circle, for milliseconds (OpenBLAS 2**26 clock ticks, libgomp
300,000 rounds, Intel's OpenMP 200 ms). That is good within a model, but between two of its batches it takes processors
from the gateway and its clients, who are to bring the next one. So they circle for some tens of microseconds up to a
few milliseconds. What the operator says in the environment counts more. Knows no model; `process` calls it.
"""

from __future__ import annotations

from collections.abc import Mapping

_RESTS = {
    "OPENBLAS_THREAD_TIMEOUT": "17",  # 2**17 clock ticks: longer than what lies between two products of a model
    "GOMP_SPINCOUNT": "10000",  # rounds; with 1,000 threads fall asleep between two layers
    "KMP_BLOCKTIME": "1",  # ms; with 0 likewise
}
_OPENMP = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def worker_environment(own: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a worker of a process that has its `own`.

    `OMP_WAIT_POLICY` in it is about all OpenMP threads; any other name in it is kept as it is.
    """
    rests = dict(_RESTS)
    if "OMP_WAIT_POLICY" in own:
        for name in _OPENMP:
            del rests[name]
    return {**rests, **own}
