"""The A step with the clusters' sizes in it: strata of least variance for given centres."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MOST_SWEEPS = 20
_GAIN = 1e-6  # relative; what distances in float32 are known to

Distances = npt.NDArray[np.float32]
Assignment = npt.NDArray[np.int64]


def least_variance(distance: Distances, start: Assignment, order: Assignment) -> Assignment:
    """Lowers F(a) = Σ_k N_k Σ_{i in k} S_ik, the objective of Eq. 4.2, one example at a time.

    An example leaves cluster j for the k of least N_k S_ik + W_k + S_ik, sizes N and sums W = Σ S
    counted without it: what F then grows by. Eq. 4.3 takes N_k S_ik alone, for all examples at once
    with the sizes before. That leaves out how much dearer the others in k become, and sends all
    that find a cluster cheap to it together, so that F often rises; here it never does.

    Args:
        distance: S [N, K], of every example to every centre.
        start: [N], where they are.
        order: [N], in which they are asked, sweep after sweep until none moves (20 at most).

    Returns the new assignment [N]. An example stays where moving gains less than rounding.
    """
    examples, clusters = distance.shape
    assignment = start.copy()
    size = np.bincount(assignment, minlength=clusters).astype(np.float64)
    within = np.bincount(
        assignment, weights=distance[np.arange(examples), assignment], minlength=clusters
    )
    for _ in range(_MOST_SWEEPS):
        moved = False
        for i in order:
            here, to = assignment[i], distance[i].astype(np.float64)
            size[here] -= 1
            within[here] = max(within[here] - to[here], 0.0)
            cost = (size + 1) * to + within
            best = cost.argmin()
            if cost[best] < (1 - _GAIN) * cost[here]:
                assignment[i], moved = best, True
            size[assignment[i]] += 1
            within[assignment[i]] += to[assignment[i]]
        if not moved:
            break
    return assignment
