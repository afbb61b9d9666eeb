"""What the chips of a service did, stretch by stretch, summed up between edges in time."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.cost.table import StepTable
from sim.cost.work import StepShape
from sim.deployment import Deployment
from sim.engine.records import Columns
from sim.service import Service

Floats = npt.NDArray[np.float64]
Instants = npt.NDArray[np.int64]

ROUNDING = 1e-6
"""Share of a stretch's time up to which elapsed and tabled time are the same: the clock counts
whole ticks, and so do the slopes of its steps."""

BLOCK_ROWS = 131_072
"""Stretches that are priced at a time: enough to make NumPy's calls cheap, few in memory."""


@dataclass(frozen=True)
class Activity:
    """What the replicas of one pool did in some stretches, priced."""

    stretches: Columns
    prefill_share: Floats
    """Part of each stretch's time that its prompts caused."""
    energy_j: Floats
    """Of all chips of the replica."""
    flop: Floats
    memory_s: Floats
    """Memory traffic as seconds at peak bandwidth, of one chip."""

    @property
    def busy_s(self) -> Floats:
        """Duration of each stretch."""
        stretches = self.stretches
        return (stretches["end_s"] - stretches["start_s"]).astype(float)

    def totals(self) -> "Totals":
        """Give what each stretch adds to the tally of its pool."""
        stretches, busy_s = self.stretches, self.busy_s
        running = stretches["decode_sequences"] + stretches["prefill_sequences"]
        return Totals(
            busy_s=busy_s,
            prefill_s=busy_s * self.prefill_share,
            output_tokens=stretches["output_tokens"].astype(float),
            prefill_tokens=stretches["prefill_tokens"].astype(float),
            energy_j=self.energy_j,
            flop=self.flop,
            memory_s=self.memory_s,
            running_s=running * busy_s,
            kv_block_s=stretches["kv_used_blocks"] * busy_s,
            waiting_s=stretches["waiting_requests"] * busy_s,
        )


class Totals(NamedTuple):
    """What is added up: an array for each quantity, of any one shape."""

    busy_s: Floats
    """Time in which a step was running."""
    prefill_s: Floats
    """The part of it that prompts caused."""
    output_tokens: Floats
    prefill_tokens: Floats
    """Tokens of prompts that were computed, images in a pool of encoders not counted."""
    energy_j: Floats
    """Of the chips of busy replicas."""
    flop: Floats
    memory_s: Floats
    """Memory traffic as seconds at peak bandwidth, of one chip."""
    running_s: Floats
    """Requests in a step, times how long."""
    kv_block_s: Floats
    """KV blocks in use, times how long."""
    waiting_s: Floats
    """Requests in the queues of busy replicas, times how long."""


def instant_s(service: Service, edges: Floats) -> float:
    """Choose the unit in which times are added up as whole numbers: as fine as 64 bits allow.

    Sums of whole numbers are exact. Spans that follow each other without a gap then add up to the
    span of all, and spans within another one to no more than that, which sums of seconds miss in
    their last digits. A power of two, and no coarser than the last digit of a time itself as long
    as there are no more than a thousand replicas.
    """
    _, exponent = math.frexp(service.replicas * float(edges[-1]))
    return math.ldexp(1.0, exponent - 62)


def instants(times_s: Floats, unit_s: float) -> Instants:
    """Count times in whole units."""
    return np.rint(times_s / unit_s).astype(np.int64)


class Overlaps:
    """Which part of each of some intervals lies between which edges.

    Parameters
    ----------
    start_s, end_s : array, shape (n,)
    edges : array, shape (bins + 1,)
        Rising.

    Examples
    --------
    Of an interval of four seconds one lies in the first bin and two in the second; what is spread
    over it evenly is dealt out like that:

    >>> overlaps = Overlaps(np.array([1.0]), np.array([5.0]), np.array([0.0, 2.0, 4.0]))
    >>> overlaps.sum(np.array([8.0])).tolist()
    [2.0, 4.0]
    """

    def __init__(self, start_s: Floats, end_s: Floats, edges: Floats) -> None:
        self._bins = edges.size - 1
        first = np.maximum(np.searchsorted(edges, start_s, side="right") - 1, 0)
        last = np.minimum(np.searchsorted(edges, end_s, side="left") - 1, self._bins - 1)
        met = np.maximum(last - first + 1, 0)
        rows = np.repeat(np.arange(start_s.size), met)
        nth = np.arange(rows.size) - np.repeat(np.cumsum(met) - met, met)
        bins = first[rows] + nth
        begin, end = start_s[rows], end_s[rows]
        self._inside = np.maximum(begin, edges[bins]), np.minimum(end, edges[bins + 1])
        inside_s = self._inside[1] - self._inside[0]
        # what begins and ends at the same moment, up to rounding, lies in one bin as a whole
        lasts = end > begin
        self._share = np.divide(inside_s, end - begin, out=np.ones_like(begin), where=lasts)
        self._rows, self._into = rows, bins

    def sum(self, values: Floats) -> Floats:
        """Add up a quantity of each interval, spread evenly over its time; shape (bins,)."""
        parts = values[self._rows] * self._share
        return np.bincount(self._into, parts, minlength=self._bins).astype(float)

    def spent(self, unit_s: float, counts: Instants | None = None) -> Instants:
        """Add up the time of the intervals in whole units, each so many times; shape (bins,).

        >>> overlaps = Overlaps(np.array([1.0]), np.array([5.0]), np.array([0.0, 2.0, 4.0]))
        >>> overlaps.spent(0.5).tolist()
        [2, 4]
        """
        bins = self._into
        begin, end = (instants(times_s, unit_s) for times_s in self._inside)
        spans = end - begin
        found = np.zeros(self._bins, np.int64)
        np.add.at(found, bins, spans if counts is None else spans * counts[self._rows])
        return found


@dataclass(frozen=True)
class Tally:
    """What each pool of a service did between edges in time; arrays of shape (pools, bins)."""

    edges: Floats
    pools: Totals

    @property
    def service(self) -> Totals:
        """The same, of all pools together; shape (bins,)."""
        return Totals(*(values.sum(axis=0) for values in self.pools))


def tally(service: Service, blocks: Iterable[Columns], *grids: Floats) -> tuple[Tally, ...]:
    """Price the stretches of a run and add them up over one or more grids of time.

    Parameters
    ----------
    service : Service
    blocks : iterable of Columns
        The stretches in any order, as many at a time as is convenient.
    *grids : array, shape (bins + 1,)
        Edges in time.

    Returns
    -------
    tallies : tuple of Tally
        One for each grid.
    """
    shape = (len(Totals._fields), len(service.pools))
    sums = [np.zeros((*shape, edges.size - 1)) for edges in grids]
    units_s = [instant_s(service, edges) for edges in grids]
    busy = [np.zeros((len(service.pools), edges.size - 1), np.int64) for edges in grids]
    for block in blocks:
        for place, part in _by_pool(service, block):
            start_s, end_s = part["start_s"].astype(float), part["end_s"].astype(float)
            totals = activity(service.pools[place], part).totals()
            if service.pools[place].role == "encode":  # it reads no text, and writes none
                none = np.zeros(start_s.size)
                totals = totals._replace(output_tokens=none, prefill_tokens=none)
            for edges, unit_s, found, spent in zip(grids, units_s, sums, busy, strict=True):
                overlaps = Overlaps(start_s, end_s, edges)
                spent[place] += overlaps.spent(unit_s)
                for quantity, values in enumerate(totals):
                    found[quantity, place] += overlaps.sum(values)
    return tuple(
        Tally(edges, Totals(*found)._replace(busy_s=spent.astype(float) * unit_s))
        for edges, unit_s, found, spent in zip(grids, units_s, sums, busy, strict=True)
    )


def blocks_of(columns: Columns, rows: int = BLOCK_ROWS) -> Iterator[Columns]:
    """Cut columns into blocks, without copying them."""
    count = len(next(iter(columns.values()), ()))
    for start in range(0, count, rows):
        yield {name: values[start : start + rows] for name, values in columns.items()}


def activity(pool: Deployment, stretches: Columns) -> Activity:
    """Price some stretches of one pool: whose time, energy, arithmetic, memory traffic."""
    shape, steps = _shape(stretches), stretches["steps"].astype(float)
    chips = pool.chips_per_replica
    done = Activity(
        stretches=stretches,
        prefill_share=_prefill_share(pool.seconds, shape),
        energy_j=chips * _total(pool.joules, shape, steps),
        flop=chips * _total(pool.flop, shape, steps),
        memory_s=_total(pool.memory_seconds, shape, steps),
    )
    tabled_s = _total(pool.seconds, shape, steps)
    if stretches["encode_tokens"].any() and pool.images is not None:
        done = _with_images(done, pool, pool.images)
        tabled_s = tabled_s + _encode_s(pool, pool.images, stretches)
    waited_j = chips * pool.awake_w * waited_s(done.busy_s, tabled_s)
    return replace(done, energy_j=done.energy_j + waited_j)


def waited_s(busy_s: Floats, tabled_s: Floats) -> Floats:
    """Time of stretches that no table knows: none where the two differ by rounding.

    Chips wait for the slowest attention rank, for the hottest experts, for the host, or for a link
    that is out of order. The tables hold the evenly dealt batch, which may take longer by what it
    assumes of uneven contexts: nothing is taken off for that.
    """
    waited = busy_s - tabled_s
    return np.where(waited > ROUNDING * busy_s, waited, 0.0)


def _with_images(done: Activity, pool: Deployment, encoder: Deployment) -> Activity:
    """Add what the images of the prompts cost in the same steps.

    Attention ranks that keep step count as if each had the mean of their images; the first of
    several stages encodes, and the others draw as much meanwhile.
    """
    stretches, chips = done.stretches, pool.chips_per_replica
    images, once = _image_shape(pool, stretches), np.ones(len(stretches["steps"]))
    encode_s = _encode_s(pool, encoder, stretches)
    busy_s = done.busy_s
    shared_s = done.prefill_share * np.maximum(busy_s - encode_s, 0.0) + encode_s
    stages = pool.case.parallelism.pp
    return replace(
        done,
        prefill_share=np.divide(shared_s, busy_s, out=np.zeros_like(busy_s), where=busy_s > 0).clip(
            max=1.0
        ),
        energy_j=done.energy_j + chips * _total(encoder.joules, images, once),
        flop=done.flop + chips / stages * _total(encoder.flop, images, once),
        memory_s=done.memory_s + _total(encoder.memory_seconds, images, once) / stages,
    )


def _image_shape(pool: Deployment, stretches: Columns) -> StepShape:
    """Gather the images in the steps, as prompts of an encoder."""
    return StepShape(
        prefill_sequences=np.minimum(stretches["prefill_sequences"], stretches["encode_tokens"]),
        prefill_tokens=stretches["encode_tokens"] / pool.schedulers,
        prefill_pairs=stretches["encode_pairs"].astype(float) / pool.schedulers,
    )


def _encode_s(pool: Deployment, encoder: Deployment, stretches: Columns) -> Floats:
    once = np.ones(len(stretches["steps"]))
    return _total(encoder.seconds, _image_shape(pool, stretches), once)


def _by_pool(service: Service, block: Columns) -> Iterator[tuple[int, Columns]]:
    """Sort stretches by the pool of their replica."""
    if len(service.pools) == 1:
        yield 0, block
        return
    pools = np.searchsorted(service.first_replicas, block["replica"], side="right") - 1
    for place in np.unique(pools).tolist():
        mine = pools == place
        yield place, {name: values[mine] for name, values in block.items()}


def _shape(stretches: Columns) -> StepShape:
    """Gather counts of one step of each stretch, and attention sums over all its steps."""
    return StepShape(
        decode_sequences=stretches["decode_sequences"],
        decode_context_tokens=stretches["decode_context_tokens"].astype(float),
        decode_window_tokens=stretches["decode_window_tokens"].astype(float),
        prefill_sequences=stretches["prefill_sequences"],
        prefill_tokens=stretches["prefill_tokens"],
        prefill_pairs=stretches["prefill_pairs"].astype(float),
        prefill_window_pairs=stretches["prefill_window_pairs"].astype(float),
        prefill_context_tokens=stretches["prefill_context_tokens"].astype(float),
    )


def _total(table: StepTable, shape: StepShape, steps: Floats) -> Floats:
    return steps * table.fixed(shape) + table.attended(shape)


def _prefill_share(table: StepTable, shape: StepShape) -> Floats:
    """Split the time of mixed steps in proportion to what each part would take alone."""
    prefill = StepShape(
        prefill_sequences=shape.prefill_sequences,
        prefill_tokens=shape.prefill_tokens,
        prefill_pairs=shape.prefill_pairs,
        prefill_window_pairs=shape.prefill_window_pairs,
        prefill_context_tokens=shape.prefill_context_tokens,
    )
    decode = StepShape(
        decode_sequences=shape.decode_sequences,
        decode_context_tokens=shape.decode_context_tokens,
        decode_window_tokens=shape.decode_window_tokens,
    )
    # in a stretch of many steps there are no prompts, and the share is 0 whatever the divisor
    alone = table.fixed(prefill) + table.attended(prefill)
    other = table.fixed(decode) + table.attended(decode)
    return np.divide(alone, alone + other, out=np.zeros_like(alone), where=alone + other > 0)
