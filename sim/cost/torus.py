"""Times of collectives on a torus or grid of chips.

Chips are numbered with the first axis fastest, like the digits of a number. A group of every
``stride``-th chip is a box: along each axis it has some members, so many hops apart. Between them
lie the members of other groups that do the same thing at the same time, so each link is crossed
by as many groups as there are hops from member to member, and a group has its share of it.
"""

import math
from itertools import permutations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.errors import InfeasibleError
from sim.hardware import Torus
from sim.parallelism import ChipGroup

Array = npt.NDArray[np.float64]


class Span(NamedTuple):
    """Members of a group along one axis."""

    chips: int
    hops: int
    """From one member to the next, and groups that share each link."""
    ring: bool
    """Whether a way leads from the last member on to the first."""
    link_bytes_per_s: float
    """What a group gets of one link, one direction."""

    @property
    def gather_hops(self) -> int:
        """Longest way of a shard: half around a ring, or along the whole line."""
        return (self.chips // 2 if self.ring else self.chips - 1) * self.hops

    def gather_s(self, payload_bytes: Array) -> Array:
        """Time on the wire to gather a buffer, or to reduce and scatter it, seconds.

        Shards travel both ways around a ring, half the way each; on a line the link next to its
        end has to carry all shards but one in a single direction.

        >>> ring = Span(chips=4, hops=1, ring=True, link_bytes_per_s=100.0)
        >>> float(ring.gather_s(np.asarray(800.0)))  # three shards of 200 over two links
        3.0
        >>> float(ring._replace(ring=False).gather_s(np.asarray(800.0)))
        6.0
        """
        links = 2 if self.ring else 1
        shards = (self.chips - 1) / self.chips
        return payload_bytes * (shards / (links * self.link_bytes_per_s))

    def exchange_s(self, payload_bytes: Array) -> Array:
        """Time on the wire of an all-to-all in which each member sends so many bytes, seconds.

        What crosses the middle: ``chips**2 // 4`` pairs each way on a line; in a ring half of
        them, since there are two middles.
        """
        pairs = (self.chips**2 // 4) / self.chips
        links = 2 if self.ring else 1
        return payload_bytes * (pairs / (links * self.link_bytes_per_s))


class TorusDomain:
    """The collectives of groups on one torus.

    Parameters
    ----------
    torus : Torus
    efficiency : float
        Fraction of a link's datasheet bandwidth that collectives reach.
    """

    def __init__(self, torus: Torus, efficiency: float) -> None:
        self.torus = torus
        self.efficiency = efficiency
        self.latency_s = torus.latency_s.value

    @property
    def shape(self) -> str:
        """Chips along the axes, ``4x4x4``."""
        return "x".join(str(axis.chips) for axis in self.torus.axes)

    def spans(self, group: ChipGroup) -> tuple[Span, ...]:
        """Find the axes along which a group has more than one member.

        Boxes fill every axis but the last, on which they may leave chips over.

        Raises
        ------
        InfeasibleError
            If the group is not a box of the torus.

        >>> from sim.catalog import open_catalog
        >>> pod = TorusDomain(open_catalog().system("tpu_v5e_256").scale_up, 1.0)
        >>> [(span.chips, span.hops, span.ring) for span in pod.spans(ChipGroup(32, 1))]
        [(16, 1, True), (2, 1, False)]
        >>> [(span.chips, span.hops, span.ring) for span in pod.spans(ChipGroup(4, 4))]
        [(4, 4, True)]
        """
        found = []
        below = 1
        end = group.ranks * group.stride
        for axis in self.torus.axes:
            above = below * axis.chips
            low, high = max(group.stride, below), min(end, above)
            if high > low:
                unfit = above % high and axis is not self.torus.axes[-1]
                if low % below or high % low or unfit:
                    raise self._no_box(group)
                hops = low // below
                ring = axis.wraps and high == above and axis.chips > 2
                rate = axis.link_bandwidth_bytes_per_s.value * self.efficiency / hops
                found.append(Span(high // low, hops, ring, rate))
            below = above
        if math.prod(span.chips for span in found) != group.ranks:
            raise self._no_box(group)
        return tuple(found)

    def seconds(self, operation: str, group: ChipGroup, payload_bytes: Array) -> Array:
        """Time of one collective, seconds; payloads as in `sim.cost.fabric.Fabric`."""
        if operation == "send":
            return self._send_s(group, payload_bytes)
        spans = self.spans(group)
        if operation == "all_to_all":
            wire_s = np.maximum.reduce([span.exchange_s(payload_bytes) for span in spans])
            exchanged: Array = wire_s + self.latency_s * sum(span.gather_hops for span in spans)
            return exchanged
        phases = 2 if operation == "all_reduce" else 1
        return phases * self._gather_s(spans, payload_bytes)

    def _gather_s(self, spans: tuple[Span, ...], payload_bytes: Array) -> Array:
        """Reduce-scatter over all axes: the faster of two ways. All-gather is its mirror image.

        Either one axis after the other, each of which leaves a smaller buffer to the next. Or the
        buffer is cut into as many parts as there are axes, each part begins with an axis of its
        own, and all axes work at the same time; a phase ends with its slowest part.
        """
        orders = [self._in_turn_s(order, payload_bytes) for order in permutations(spans)]
        count = len(spans)
        rotated = np.zeros_like(payload_bytes)
        for phase in range(count):
            parts = []
            for first in range(count):
                done = math.prod(spans[(first + p) % count].chips for p in range(phase))
                span = spans[(first + phase) % count]
                part_s = span.gather_s(payload_bytes / (count * done))
                parts.append(part_s + self.latency_s * span.gather_hops)
            rotated = rotated + np.maximum.reduce(parts)
        fastest: Array = np.minimum.reduce([rotated, *orders])
        return fastest

    def _in_turn_s(self, order: tuple[Span, ...], payload_bytes: Array) -> Array:
        total = np.zeros_like(payload_bytes)
        left = payload_bytes
        for span in order:
            total = total + span.gather_s(left) + self.latency_s * span.gather_hops
            left = left / span.chips
        return total

    def _send_s(self, group: ChipGroup, payload_bytes: Array) -> Array:
        """Every chip sends to the chip ``stride`` after it, along one axis after the other.

        A shift along an axis by ``h`` loads no link with more than ``h`` messages, nor with more
        than the chips that it passes over at the other side, ``chips - h``.
        """
        hops, slowest = 0, np.zeros_like(payload_bytes)
        below, end = 1, group.ranks * group.stride
        for axis in self.torus.axes:
            if below >= end:
                break  # the last member sends to nobody, so nothing is carried so far
            digit = group.stride // below % axis.chips
            carried = group.stride % below > 0
            shifts = {digit, (digit + 1) % axis.chips} if carried else {digit}
            around = axis.wraps or end <= below * axis.chips
            load = max(min(shift, axis.chips - shift) for shift in shifts)
            far = max(max(shift, axis.chips - shift) if shift else 0 for shift in shifts)
            hops += load if around else far
            rate = axis.link_bandwidth_bytes_per_s.value * self.efficiency
            slowest = np.maximum(slowest, payload_bytes * (load / rate))
            below *= axis.chips
        return slowest + self.latency_s * hops

    def _no_box(self, group: ChipGroup) -> InfeasibleError:
        apart = "" if group.stride == 1 else f", {group.stride} apart,"
        return InfeasibleError(
            f"a group of {group.ranks} chips{apart} is no box of a {self.shape} torus; choose "
            "ranks that fill its axes one after the other",
            key="parallelism",
        )
