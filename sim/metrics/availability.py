"""How long the replicas of each pool were there: for the load, and for the bill."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.engine.records import Columns
from sim.metrics.activity import Instants, Overlaps, instant_s, instants
from sim.reliability import SpareKind
from sim.service import Service

Floats = npt.NDArray[np.float64]

NOT_SERVING = ("off", "booting", "down")
"""States in which a replica serves nobody. One that is draining still does."""
NOT_PAID = ("off",)
"""States in which its chips belong to somebody else, unless it is a spare that is kept prepared.
One that is down keeps them: whoever runs a service pays for its failures, as for boots."""
KEPT: tuple[SpareKind, ...] = ("hot", "warm")
"""Spares that stand on hosts of their own. A cold one has no host before it is needed."""


@dataclass(frozen=True)
class Availability:
    """Replica-seconds of each pool between edges; arrays of shape (pools, bins)."""

    installed_s: Floats
    """Of all replicas, whatever their state."""
    paid_s: Floats
    """Of those that were not switched off."""
    up_s: Floats
    """Of those that could serve."""
    booting_s: Floats
    """Of those that were on their way up."""
    down_s: Floats
    """Of those that had failed, or whose requests maintenance had broken off."""


def availability(service: Service, states: Columns, edges: Floats) -> Availability:
    """Add up how long replicas were there.

    Parameters
    ----------
    service : Service
    states : Columns
        ``replica, state, start_s, end_s``. A replica is up whenever nothing else is said of it.
    edges : array, shape (bins + 1,)
    """
    unit_s = instant_s(service, edges)
    widths = np.diff(instants(edges, unit_s))
    installed: Instants = np.array([[pool.replicas] for pool in service.pools]) * widths
    return Availability(
        installed_s=installed.astype(float) * unit_s,
        paid_s=(installed - _given_away(service, states, edges)).astype(float) * unit_s,
        up_s=(installed - _time_in(service, states, edges, NOT_SERVING)).astype(float) * unit_s,
        booting_s=_time_in(service, states, edges, ("booting",)).astype(float) * unit_s,
        down_s=_time_in(service, states, edges, ("down",)).astype(float) * unit_s,
    )


def _time_in(service: Service, states: Columns, edges: Floats, which: tuple[str, ...]) -> Instants:
    """Time in which replicas of each pool were in some states."""
    found = np.zeros((len(service.pools), edges.size - 1), np.int64)
    for place, start_s, end_s in _spans(service, states, which):
        found[place] = Overlaps(start_s, end_s, edges).spent(instant_s(service, edges))
    return found


def _given_away(service: Service, states: Columns, edges: Floats) -> Instants:
    """Time of replicas of each pool that nobody pays for: switched off, not kept as a spare."""
    found = np.zeros((len(service.pools), edges.size - 1), np.int64)
    for place, start_s, end_s in _spans(service, states, NOT_PAID):
        times, counts = _number_over_time(start_s, end_s)
        given = np.maximum(counts - _kept_spares(service, place), 0)
        found[place] = Overlaps(times[:-1], times[1:], edges).spent(
            instant_s(service, edges), given
        )
    return found


def _kept_spares(service: Service, place: int) -> int:
    """Replicas of a pool whose chips are kept while they are switched off."""
    faults = service.pools[place].case.faults
    return 0 if faults is None or faults.spare not in KEPT else faults.spares


def _number_over_time(start_s: Floats, end_s: Floats) -> tuple[Floats, Instants]:
    """Count the spans that overlap, between the times at which any begins or ends.

    >>> _number_over_time(np.array([0.0, 1.0]), np.array([3.0, 2.0]))
    (array([0., 1., 2., 3.]), array([1, 2, 1]))
    """
    times, places = np.unique(np.concatenate([start_s, end_s]), return_inverse=True)
    steps = np.repeat([1.0, -1.0], start_s.size)
    counts: Instants = np.cumsum(np.bincount(places, weights=steps)).astype(np.int64)
    return times, counts[:-1]


def _spans(
    service: Service, states: Columns, which: tuple[str, ...]
) -> Iterator[tuple[int, Floats, Floats]]:
    """Give the pools in which replicas were in some states, and from when to when each was."""
    wanted = np.isin(states["state"].astype(str), which)
    start_s, end_s = (states[name][wanted].astype(float) for name in ("start_s", "end_s"))
    pools = np.searchsorted(service.first_replicas, states["replica"][wanted], side="right") - 1
    for place in np.unique(pools).tolist():
        yield place, start_s[pools == place], end_s[pools == place]
