"""An oracle for the fabric: messages sent link by link, nothing known of closed forms.

Chips of a grid are coordinates; a message walks along the first axis, then the second, the shorter
way around where an axis wraps, half and half where both ways are as long. A round takes as long as
its most loaded link needs, plus the latency of its longest way.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import product
from typing import NamedTuple

Chip = tuple[int, ...]
Link = tuple[Chip, Chip]
Message = tuple[Chip, Chip, float]


class Grid(NamedTuple):
    """Chips on a torus or grid with the same link everywhere along an axis."""

    sizes: tuple[int, ...]
    wraps: tuple[bool, ...]
    rates: tuple[float, ...]
    latency_s: float

    def chip(self, number: int) -> Chip:
        place = []
        for size in self.sizes:
            place.append(number % size)
            number //= size
        return tuple(place)

    @property
    def chips(self) -> int:
        total = 1
        for size in self.sizes:
            total *= size
        return total

    def groups(self, ranks: int, stride: int) -> list[list[int]]:
        """All groups of an axis of a replica that fills the grid."""
        block = ranks * stride
        return [
            [start + offset + i * stride for i in range(ranks)]
            for start in range(0, self.chips, block)
            for offset in range(stride)
        ]

    def walk(self, source: Chip, target: Chip) -> Iterator[tuple[list[Link], float]]:
        """Ways from chip to chip, each with its share of the message."""
        ways: list[tuple[list[Link], Chip, float]] = [([], source, 1.0)]
        for axis, size in enumerate(self.sizes):
            ways = [
                (links + more, end, share * part)
                for links, place, share in ways
                for more, end, part in self._along(axis, size, place, target)
            ]
        for links, _, share in ways:
            yield links, share

    def _along(
        self, axis: int, size: int, place: Chip, target: Chip
    ) -> list[tuple[list[Link], Chip, float]]:
        ahead = (target[axis] - place[axis]) % size
        behind = (size - ahead) % size
        if not (self.wraps[axis] and size > 2):
            directions = [1] if target[axis] > place[axis] else [-1]
            lengths = [abs(target[axis] - place[axis])]
        elif ahead == behind:
            directions, lengths = [1, -1], [ahead, behind]
        else:
            directions = [1] if ahead < behind else [-1]
            lengths = [min(ahead, behind)]
        found = []
        for direction, length in zip(directions, lengths, strict=True):
            links, here = [], place
            for _ in range(length):
                there = list(here)
                there[axis] = (here[axis] + direction) % size
                links.append((here, tuple(there)))
                here = tuple(there)
            found.append((links, here, 1.0 / len(directions)))
        return found

    def round_s(self, messages: Iterable[Message]) -> float:
        """Time of messages that are sent at the same time."""
        load: dict[Link, float] = defaultdict(float)
        hops = 0
        for source, target, size in messages:
            for links, share in self.walk(source, target):
                hops = max(hops, len(links))
                for link in links:
                    load[link] += size * share
        if not hops:
            return 0.0
        slowest = max(size / self.rates[self._axis(link)] for link, size in load.items())
        return slowest + hops * self.latency_s

    @staticmethod
    def _axis(link: Link) -> int:
        return next(axis for axis, (a, b) in enumerate(zip(*link, strict=True)) if a != b)


def all_to_all_s(grid: Grid, ranks: int, stride: int, payload: float) -> float:
    """Every member of every group sends its share to every other at once."""
    messages = [
        (grid.chip(a), grid.chip(b), payload / ranks)
        for group in grid.groups(ranks, stride)
        for a, b in product(group, group)
        if a != b
    ]
    return grid.round_s(messages)


def send_s(grid: Grid, ranks: int, stride: int, payload: float) -> float:
    """Every member of every group but the last sends to the next."""
    messages = [
        (grid.chip(a), grid.chip(a + stride), payload)
        for group in grid.groups(ranks, stride)
        for a in group[:-1]
    ]
    return grid.round_s(messages)


def ring_gather_s(grid: Grid, lines: list[list[Chip]], shard: float, *, closed: bool) -> float:
    """All-gather along rows of chips, shard by shard, everybody both ways.

    On a closed row shards go half the way around in either direction; the last step of an even
    row is half a shard each way. On an open row every shard goes to both ends.
    """
    count = len(lines[0])
    total = 0.0
    for step in range(1, count // 2 + 1 if closed else count):
        last_half = closed and count % 2 == 0 and step == count // 2
        size = shard / 2 if last_half else shard
        messages: list[Message] = []
        for line in lines:
            for place, chip in enumerate(line):
                for direction in (1, -1):
                    origin, target = place - direction * (step - 1), place + direction
                    if closed:
                        messages.append((chip, line[target % count], size))
                    elif 0 <= origin < count and 0 <= target < count:
                        messages.append((chip, line[target], size))
        total += grid.round_s(messages)
    return total
