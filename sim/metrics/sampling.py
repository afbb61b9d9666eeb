"""How far statistics of a run would move with other requests of the same traffic.

One run stands for many seeds: requests that come later are drawn anew. Neighbours meet with the
same queue, so that they count as fewer than they are; by how many fewer the means of consecutive
batches tell, as far as each differs from the next: what rises and falls slowly is the traffic's own
pattern, which another seed has too.
"""

import math

import numpy as np
import numpy.typing as npt

from sim.uncertainty import EDGE

Floats = npt.NDArray[np.float64]

BATCHES = 20
"""Parts that a run is cut into, by arrival."""
ENOUGH = 5_000
"""Requests from which on the scatter of a run's statistics is lost in that of measurements."""
LEAST = 2
LEAST_BATCH = 5


def sampling_reach(values: Floats, statistic: str) -> tuple[float, float]:
    """Give how far an 80 % interval of a statistic reaches down and up, in logs.

    Parameters
    ----------
    values : array
        Of each request, in the order of arrival; positive.
    statistic : str
        ``mean``, or a percentile such as ``p95``.

    Returns
    -------
    down, up : float
        Both 0 with `ENOUGH` requests or more; with fewer than `LEAST` too, as nothing can be told.

    Examples
    --------
    >>> down, up = sampling_reach(np.array([1.0, 3.0] * 200), "mean")
    >>> round(down, 3)  # 1.2816 x 1.0 / (2.0 x sqrt(400)), neighbours being independent
    0.032
    """
    if not LEAST <= values.size < ENOUGH or not np.all(values > 0):
        return 0.0, 0.0
    count = values.size / _likeness(values)
    if statistic == "mean":
        reach = EDGE * float(values.std(ddof=1)) / (float(values.mean()) * math.sqrt(count))
        return reach, reach
    share = float(statistic[1:]) / 100
    reach = EDGE * math.sqrt(share * (1.0 - share) / count)
    low, middle, high = np.quantile(values, np.clip([share - reach, share, share + reach], 0, 1))
    return math.log(middle / low), math.log(high / middle)


def _likeness(values: Floats) -> float:
    """Give how many requests count as one, by how much more than chance batch means vary.

    Half the mean square of the differences of neighbours is their variance without slow changes
    (von Neumann 1941, doi:10.1214/aoms/1177731677).
    """
    size = values.size // BATCHES
    spread = float(values.var(ddof=1))
    if size < LEAST_BATCH or spread <= 0.0:
        return 1.0
    means = values[: size * BATCHES].reshape(BATCHES, size).mean(axis=1)
    variance = float(np.mean(np.diff(means) ** 2)) / 2
    return float(np.clip(size * variance / spread, 1.0, size))
