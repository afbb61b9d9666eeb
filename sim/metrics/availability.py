"""How long the replicas of each pool were there: for the load, and for the bill."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.engine.records import Columns
from sim.metrics.activity import Overlaps
from sim.service import Service

Floats = npt.NDArray[np.float64]

NOT_SERVING = ("off", "booting", "down")
"""States in which a replica serves nobody. One that is draining still does."""
NOT_PAID = ("off",)
"""States in which its chips belong to somebody else. One that is down keeps them: whoever runs a
service pays for its failures, as for boots."""


@dataclass(frozen=True)
class Availability:
    """Replica-seconds of each pool between edges; arrays of shape (pools, bins)."""

    installed_s: Floats
    """Of all replicas, whatever their state."""
    paid_s: Floats
    """Of those that were not switched off."""
    up_s: Floats
    """Of those that could serve."""


def availability(service: Service, states: Columns, edges: Floats) -> Availability:
    """Add up how long replicas were there.

    Parameters
    ----------
    service : Service
    states : Columns
        ``replica, state, start_s, end_s``. A replica is up whenever nothing else is said of it.
    edges : array, shape (bins + 1,)
    """
    widths = np.diff(edges)
    installed = np.array([[pool.replicas] for pool in service.pools]) * widths
    return Availability(
        installed_s=installed,
        paid_s=installed - _spent(service, states, edges, NOT_PAID),
        up_s=installed - _spent(service, states, edges, NOT_SERVING),
    )


def _spent(service: Service, states: Columns, edges: Floats, which: tuple[str, ...]) -> Floats:
    """Replica-seconds that each pool spent in some states."""
    found = np.zeros((len(service.pools), edges.size - 1))
    wanted = np.isin(states["state"].astype(str), which)
    if not wanted.any():
        return found
    start_s, end_s = (states[name][wanted].astype(float) for name in ("start_s", "end_s"))
    replicas = states["replica"][wanted]
    pools = np.searchsorted(service.first_replicas, replicas, side="right") - 1
    for place in np.unique(pools).tolist():
        mine = pools == place
        overlaps = Overlaps(start_s[mine], end_s[mine], edges)
        found[place] = overlaps.sum(end_s[mine] - start_s[mine])
    return found
