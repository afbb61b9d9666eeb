"""A whole measurement: families of points, one after the other, each in random order.

Rows are written as they come. What is in the files already is not measured again, so a campaign
can be stopped at any time and resumed.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from sim.calibration.run_format import COLUMNS
from sim.errors import RackcastError
from sim.measuring.bench import Bench, Point
from sim.measuring.tables import Table
from sim.seeds import stream

Family = Literal[
    "gemm", "power", "attention", "elementwise", "memory", "collectives", "decode", "serving"
]
"""In the order in which they are measured; power before the operands are written over."""
SHARES: Mapping[Family, int] = {"gemm": 3, "attention": 2, "decode": 2, "serving": 2}
"""Of a limited time that a family gets; the others get 1."""
MEMORY_SHARE = 0.8
"""Of the free memory that a point may need."""

_WHO = ("hardware", "framework", "version", "kernel_source")
_TIMING = ("latency_us", "spread_fraction", "blocks", "calls")
_HEADS = (
    *("attn_dtype", "kv_cache_dtype", "batch_size"),
    *("num_heads", "num_key_value_heads", "head_dim", "window_size"),
)
_TABLES: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "gemm": ("kernels/measured_gemm.csv", ("gemm_dtype", "m", "n", "k"), _TIMING),
    "attention_prefill": ("kernels/measured_attention_prefill.csv", (*_HEADS, "isl"), _TIMING),
    "attention_decode": ("kernels/measured_attention_decode.csv", (*_HEADS, "kv_len"), _TIMING),
    "memory": ("kernels/measured_memory.csv", ("op", "bytes"), (*_TIMING, "bytes_per_s")),
    "elementwise": (
        "kernels/measured_elementwise.csv",
        ("op", "dtype", "num_tokens", "width"),
        (*_TIMING, "bytes_per_s"),
    ),
    "power": (
        "kernels/measured_power.csv",
        ("op", "dtype", "shape"),
        ("latency_us", "power_w", "power_limit_w"),
    ),
    "steps": (
        "steps.csv",
        ("model", "layers", "phase", "batch_size", "context_tokens"),
        ("dtype", *_TIMING, "device_us", "power_w"),
    ),
}
"""File, key and measured columns of each table of kernels and steps."""


def tables(out: Path) -> dict[str, Table]:
    """Name the files of a measurement, none of them opened yet.

    Parameters
    ----------
    out
        The folder: ``comms.csv`` and ``kernels/`` in it are what a fit reads.
    """
    found = {
        name: Table(out / file, (*_WHO, *key, *values), key)
        for name, (file, key, values) in _TABLES.items()
    }
    comms = (
        *("op", "hardware", "n_chips", "bytes", "dtype", "time_us"),
        *("implementation", "notes", "source"),
    )
    times = ("arrival_s", "admit_s", "first_token_s", "done_s")
    requests = ("row_id", "request", *times, "input_tokens", "output_tokens")
    return found | {
        "comms": Table(out / "comms.csv", comms, ("op", "n_chips", "bytes")),
        "serving": Table(out / "serving.csv", tuple(COLUMNS), ("row_id",)),
        "requests": Table(out / "serving_requests.csv", requests, ("row_id", "request")),
    }


def in_random_order(points: Iterable[Point], family: str, seed: int = 0) -> list[Point]:
    """Shuffle points, so that a machine that warms up does not look like a law of their sizes.

    Groups follow one another as they come; the order within each is random, and the same for the
    same seed.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.group, []).append(point)
    found = []
    for name, group in groups.items():
        order = stream(seed, "measure", family, name).permutation(len(group))
        found += [group[index] for index in order]
    return found


class MeasurementInterruptedError(RackcastError):
    """The user stopped the measurement; the message says what there is."""

    exit_code: ClassVar[int] = 130


@dataclass
class Outcome:
    """What a campaign has done."""

    measured: int = 0
    there: int = 0
    """Points that had a row already."""
    skipped: list[str] = field(default_factory=list)
    """Points that this machine cannot do, and why."""
    left: int = 0
    """Points for which there was no time."""


Progress = Callable[[int, int], None]
"""Hears how many points of a family are done, and of how many."""


def run_campaign(
    families: Mapping[Family, Sequence[Point]],
    bench: Bench,
    into: Mapping[str, Table],
    budget_s: float | None = None,
    watch: Callable[[str], Progress] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Measure the points of some families and write their rows.

    Parameters
    ----------
    families
        Points by family; measured in this order, each family in the order given.
    bench
        Where they are measured.
    into
        Tables by name, opened.
    budget_s
        Time for everything; each family gets its share of what is left. None: no limit.
    watch
        Gives out a progress bar for each family.
    clock
        Seconds.

    Raises
    ------
    MeasurementInterruptedError
        Interrupted with Ctrl-C; all rows so far are in the files.
    """
    outcome, started = Outcome(), clock()
    try:
        for index, (family, points) in enumerate(families.items()):
            over = _never
            if budget_s is not None:
                left_s = max(0.0, started + budget_s - clock())
                shares = [SHARES.get(name, 1) for name in list(families)[index:]]
                over = _deadline(clock() + left_s * shares[0] / sum(shares), clock)
            progress = watch(family) if watch is not None else _unwatched
            _run_family(points, bench, into, outcome, over, progress)
    except KeyboardInterrupt:
        raise MeasurementInterruptedError(
            f"interrupted: {outcome.measured} points measured and kept; --resume goes on"
        ) from None
    finally:
        bench.release()
    return outcome


def _never() -> bool:
    """Tell that there is time."""
    return False


def _deadline(ends: float, clock: Callable[[], float]) -> Callable[[], bool]:
    return lambda: clock() >= ends


def _unwatched(done: int, total: int) -> None:
    """Nobody wants to hear of progress."""


def _run_family(
    points: Sequence[Point],
    bench: Bench,
    into: Mapping[str, Table],
    outcome: Outcome,
    over: Callable[[], bool],
    progress: Progress,
) -> None:
    for done, point in enumerate(points):
        progress(done, len(points))
        if into[point.table].has(point.key):
            outcome.there += 1
        elif over():
            outcome.left += 1
        else:
            _measure(point, bench, into, outcome)
    progress(len(points), len(points))


def _measure(point: Point, bench: Bench, into: Mapping[str, Table], outcome: Outcome) -> None:
    free_bytes = bench.device.free_bytes()
    if point.needed_bytes > MEMORY_SHARE * free_bytes:
        reason = f"needs {point.needed_bytes:.3g} bytes, {free_bytes:.3g} are free"
        outcome.skipped.append(f"{point.table} {point}: {reason}")
        return
    try:
        written = point.run(bench)
    except (RuntimeError, NotImplementedError) as error:  # out of memory, or no such kernel
        reason = str(error).strip().partition("\n")[0]
        outcome.skipped.append(f"{point.table} {point}: {reason}")
        return
    for table, row in written:
        if not into[table].has(row):
            into[table].append(row)
    outcome.measured += 1
