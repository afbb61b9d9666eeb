"""How long a call takes: warm-up, repeated blocks, and when to stop.

A *block* is a number of calls in a row, timed as one, long enough for the clock. Blocks repeat
until their median is known to `Patience.spread_fraction`, or the time for this point is over. The
*spread* of a median of ``n`` blocks is its standard error over itself: ``1.2533 * s / sqrt(n)``,
with ``s = 1.4826 *`` the median absolute deviation; both constants are those of a normal
distribution (Huber, Robust Statistics, 1981, sections 1.1 and 5.1), and one hiccup of the machine
moves neither.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

FEWEST_BLOCKS = 10
MORE_BLOCKS = 5
"""Whether to stop is asked each time there are so many more: to ask after every block would stop at
the first that happens to look steady."""
FEWEST_SLOW_BLOCKS = 3
"""Blocks of a call that is so slow that its time is over after the first."""
MOST_BLOCKS = 1000
DEVIATION = 1.4826
"""Standard deviation over median absolute deviation, of a normal distribution."""
MEDIAN_ERROR = 1.2533
"""Standard error of a median over that of a mean: the root of half of pi."""


class Block(NamedTuple):
    """Calls timed as one."""

    seconds: float
    calls: int


Run = Callable[[int], Block]
"""Makes at least so many calls and says how long they took."""


@dataclass(frozen=True)
class Patience:
    """How long to measure one point."""

    limit_s: float
    """Time for the blocks of one point; warm-up comes on top."""
    block_s: float = 0.005
    """Shortest block: what a clock or an event tells to a part in a thousand."""
    spread_fraction: float = 0.02
    """Spread of the median at which to stop."""


@dataclass(frozen=True)
class Timing:
    """What the blocks of one point say."""

    median_s: float
    """Of one call."""
    spread_fraction: float
    """Standard error of the median over the median."""
    blocks: int
    calls: int
    """Calls in all blocks together."""


def summary(blocks: Sequence[Block]) -> Timing:
    """Tell the median of some blocks and its spread.

    Examples
    --------
    Calls of 10, 10, 11, 12 and 13 s: the median is 11, most are within 1 s of it, and
    1.2533 x 1.4826 x 1 / sqrt(5) / 11 = 0.0755.

    >>> found = summary([Block(t, 1) for t in (10.0, 13.0, 11.0, 10.0, 12.0)])
    >>> found.median_s, round(found.spread_fraction, 4)
    (11.0, 0.0755)
    """
    each_s = [block.seconds / block.calls for block in blocks]
    median_s = statistics.median(each_s)
    deviation_s = DEVIATION * statistics.median([abs(one_s - median_s) for one_s in each_s])
    error_s = MEDIAN_ERROR * deviation_s / math.sqrt(len(each_s))
    spread = error_s / median_s if median_s > 0.0 else 0.0
    return Timing(median_s, spread, len(each_s), sum(block.calls for block in blocks))


def measured(
    run: Run, patience: Patience, clock: Callable[[], float] = time.perf_counter
) -> Timing:
    """Time a call until its median is known well enough or the time is over.

    Parameters
    ----------
    run
        Makes the calls.
    patience
        When to stop.
    clock
        Seconds, for the time limit alone.
    """
    run(1)  # the first call allocates, compiles and chooses an algorithm
    calls = _block_size(run, patience.block_s)
    blocks: list[Block] = []
    started = clock()
    while len(blocks) < MOST_BLOCKS:
        blocks.append(run(calls))
        if clock() - started >= patience.limit_s and len(blocks) >= FEWEST_SLOW_BLOCKS:
            break
        asked = len(blocks) >= FEWEST_BLOCKS and len(blocks) % MORE_BLOCKS == 0
        if asked and summary(blocks).spread_fraction < patience.spread_fraction:
            break
    return summary(blocks)


def _block_size(run: Run, block_s: float) -> int:
    """Find how many calls fill a block, by doubling at least; this is the warm-up too."""
    calls = 1
    while True:
        block = run(calls)
        if block.seconds >= block_s:
            return calls
        missing = block_s / max(block.seconds, block_s / 100.0)
        calls = math.ceil(max(calls, block.calls) * max(2.0, 1.2 * missing))
