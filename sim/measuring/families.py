"""The kernels that are measured, and over which shapes: products, attention, traffic, elementwise.

Shapes cover what a dense transformer of a few to some hundred billion parameters has on a chip.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import get_args

from sim.measuring.bench import Bench, Point, Written
from sim.measuring.device import Kind
from sim.measuring.operators import FP8, Elementwise, Heads, Prepared, Traffic
from sim.measuring.power import metering
from sim.measuring.tables import Cell
from sim.measuring.timing import Patience, measured
from sim.units import GIB, KIB, MIB, MICROSECOND_S

ELEMENT_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, FP8: 1}
STEADY_S = 3.0
"""Time for which a product runs before and while its power is read."""


@dataclass(frozen=True)
class Grid:
    """Shapes to measure, and how much work one call may be."""

    most_flop: float
    """Larger calls are left out: they would take seconds each."""
    most_bytes: float
    rows: tuple[int, ...]
    weights: tuple[tuple[int, int], ...]
    """Columns and depth (n, k) of products."""
    prompts: tuple[tuple[int, int], ...]
    """Sequences and tokens of each."""
    caches: tuple[tuple[int, int], ...]
    """Sequences and cached tokens of each."""
    heads: tuple[Heads, ...]
    sizes_bytes: tuple[int, ...]
    """Of traffic."""
    tokens: tuple[int, ...]
    """Of elementwise operators."""
    widths: tuple[int, ...]
    messages_bytes: tuple[int, ...]
    """Of collectives."""


def _powers(first: int, last: int, factor: int = 2) -> tuple[int, ...]:
    """Go from first to last by a factor.

    >>> _powers(1, 16, 4)
    (1, 4, 16)
    """
    found = []
    while first <= last:
        found.append(first)
        first *= factor
    return tuple(found)


_KIB, _MIB = int(KIB), int(MIB)
_QUICK = Grid(
    most_flop=0.0,
    most_bytes=0.0,
    rows=_powers(1, 4096, 4),
    weights=((1536, 4096), (4096, 1536), (2048, 2048), (4096, 4096), (8192, 8192)),
    prompts=((1, 64), (1, 128), (1, 256), (1, 512), (1, 2048), (2, 256), (4, 128), (4, 2048)),
    caches=tuple(product((1, 4, 16), (128, 512, 2048))),
    heads=(Heads(32, 8, 128), Heads(8, 2, 128)),
    sizes_bytes=_powers(_MIB, 512 * _MIB, 8),
    tokens=_powers(1, 4096, 16),
    widths=(4096,),
    messages_bytes=_powers(_KIB, 16 * _MIB, 4),
)
_SIDES = _powers(2048, 16384)
_SQUARES = tuple(product(_SIDES, _SIDES))
_LAYERS = ((6144, 4096), (28672, 4096), (4096, 14336), (10240, 8192), (57344, 8192), (8192, 28672))
_VOCABULARIES = ((128256, 4096), (152064, 5120))
_FULL = Grid(
    most_flop=0.0,
    most_bytes=0.0,
    rows=_powers(1, 16384),
    weights=(*_SQUARES, *_LAYERS, *_VOCABULARIES),
    prompts=tuple(product((1, 2, 4, 8, 16), _powers(16, 16384))),
    caches=tuple(product(_powers(1, 256), _powers(128, 65536))),
    heads=(
        *(Heads(heads, kv_heads, 128) for heads, kv_heads in ((32, 8), (16, 4), (8, 1), (64, 8))),
        *(Heads(heads, kv_heads, 64) for heads, kv_heads in ((32, 8), (8, 1))),
    ),
    sizes_bytes=_powers(_MIB // 16, 4096 * _MIB, 4),
    tokens=_powers(1, 16384),
    widths=(2048, 4096, 8192, 16384),
    messages_bytes=_powers(_KIB, 512 * _MIB),
)
_MOST: Mapping[tuple[Kind, bool], tuple[float, float]] = {
    ("cpu", True): (1e10, 128 * MIB),
    ("cpu", False): (2e11, 2 * GIB),
    ("cuda", True): (2e13, 2 * GIB),
    ("cuda", False): (2e14, 16 * GIB),
}
"""Flop and bytes of the largest call, on a processor and on a GPU, of the quick grid or not."""


def grid_of(kind: Kind, *, quick: bool) -> Grid:
    """Choose the shapes to measure: a call takes a second at most on a slow device."""
    most_flop, most_bytes = _MOST[kind, quick]
    chosen = _QUICK if quick else _FULL
    return replace(chosen, most_flop=most_flop, most_bytes=most_bytes)


_Prepare = Callable[[Bench], Prepared]


def _kernel(table: str, key: Mapping[str, Cell], prepare: _Prepare, needed_bytes: float) -> Point:
    """Make a point that times an operation and writes one row of a file of kernels."""

    def run(bench: Bench) -> list[Written]:
        return [Written(table, {**key, **bench.timed(prepare(bench))})]

    return Point(table, key, run, needed_bytes)


def products(grid: Grid, dtypes: Iterable[str]) -> Iterator[Point]:
    """List the dense products of a grid."""
    for dtype, m, (n, k) in product(dtypes, grid.rows, grid.weights):
        needed = (n * k + m * k + m * n) * ELEMENT_BYTES[dtype]
        if 2.0 * m * n * k <= grid.most_flop and needed <= grid.most_bytes:
            key: dict[str, Cell] = {"gemm_dtype": dtype, "m": m, "n": n, "k": k}
            yield _kernel("gemm", key, _gemm(dtype, m, n, k), needed)


def _gemm(dtype: str, m: int, n: int, k: int) -> _Prepare:
    return lambda bench: bench.operators.gemm(dtype, m, n, k)


def attention(grid: Grid, dtypes: Iterable[str]) -> Iterator[Point]:
    """List prefill and decode attention of a grid."""
    for dtype, heads in product(dtypes, grid.heads):
        if dtype == FP8:
            continue  # PyTorch attends in 16 bits and more
        for batch, tokens in grid.prompts:
            size = batch * tokens * 2.0 * (heads.heads + heads.kv_heads) * heads.head_dim
            flop = 2.0 * batch * tokens * tokens * heads.heads * heads.head_dim
            if flop <= grid.most_flop and size * ELEMENT_BYTES[dtype] <= grid.most_bytes:
                key = _attention_key(dtype, batch, heads) | {"isl": tokens}
                prepare = _prefill(dtype, heads, batch, tokens)
                needed = size * ELEMENT_BYTES[dtype]
                yield _kernel("attention_prefill", key, prepare, needed)
        for batch, kv_len in grid.caches:
            size = 2.0 * batch * kv_len * heads.kv_heads * heads.head_dim * ELEMENT_BYTES[dtype]
            if size <= grid.most_bytes:
                key = _attention_key(dtype, batch, heads) | {"kv_len": kv_len}
                prepare = _decode(dtype, heads, batch, kv_len)
                yield _kernel("attention_decode", key, prepare, size)


def _attention_key(dtype: str, batch: int, heads: Heads) -> dict[str, Cell]:
    return {
        "attn_dtype": dtype,
        "kv_cache_dtype": dtype,
        "batch_size": batch,
        "num_heads": heads.heads,
        "num_key_value_heads": heads.kv_heads,
        "head_dim": heads.head_dim,
        "window_size": 0,
    }


def _prefill(dtype: str, heads: Heads, batch: int, tokens: int) -> _Prepare:
    return lambda bench: bench.operators.prefill(dtype, heads, batch, tokens)


def _decode(dtype: str, heads: Heads, batch: int, kv_len: int) -> _Prepare:
    return lambda bench: bench.operators.decode(dtype, heads, batch, kv_len)


def traffic(grid: Grid) -> Iterator[Point]:
    """List copies, reads and writes of memory."""
    for kind, size in product(get_args(Traffic), grid.sizes_bytes):
        if size <= grid.most_bytes:
            key = {"op": kind, "bytes": size}
            yield _rated("memory", key, _traffic(kind, size), size)


def _traffic(kind: Traffic, size: int) -> _Prepare:
    return lambda bench: bench.operators.traffic(kind, size)


def elementwise(grid: Grid, dtypes: Iterable[str]) -> Iterator[Point]:
    """List what a layer does between its products."""
    sides = {"rms_norm": 2, "silu_mul": 3, "rope": 2}
    for kind, dtype, tokens, width in product(
        get_args(Elementwise), dtypes, grid.tokens, grid.widths
    ):
        if dtype == FP8:
            continue
        moved = sides[kind] * tokens * width * ELEMENT_BYTES[dtype]
        if moved <= grid.most_bytes:
            key = {"op": kind, "dtype": dtype, "num_tokens": tokens, "width": width}
            prepare = _elementwise(kind, dtype, tokens, width)
            yield _rated("elementwise", key, prepare, moved)


def _elementwise(kind: Elementwise, dtype: str, tokens: int, width: int) -> _Prepare:
    return lambda bench: bench.operators.elementwise(kind, dtype, tokens, width)


def _rated(table: str, key: Mapping[str, Cell], prepare: _Prepare, moved_bytes: float) -> Point:
    """Make a point that also tells the rate at which bytes were moved."""

    def run(bench: Bench) -> list[Written]:
        found = bench.timed(prepare(bench))
        seconds = float(found["latency_us"] or 0.0) * MICROSECOND_S
        rate = {"bytes_per_s": moved_bytes / seconds}
        return [Written(table, {**key, **found, **rate})]

    return Point(table, key, run, moved_bytes)


def power(grid: Grid, dtypes: Iterable[str], steady_s: float = STEADY_S) -> Iterator[Point]:
    """List the products whose power is read: some bound by arithmetic, some by memory."""
    rows = (grid.rows[0], grid.rows[len(grid.rows) // 2], grid.rows[-1])
    for dtype, m, (n, k) in product(dtypes, rows, grid.weights):
        needed = (n * k + m * k + m * n) * ELEMENT_BYTES[dtype]
        if 2.0 * m * n * k <= grid.most_flop and needed <= grid.most_bytes:
            key = {"op": "gemm", "dtype": dtype, "shape": f"m={m} n={n} k={k}"}
            yield _powered(key, _gemm(dtype, m, n, k), needed, steady_s)


def _powered(
    key: Mapping[str, Cell], prepare: _Prepare, needed_bytes: float, steady_s: float
) -> Point:
    def run(bench: Bench) -> list[Written]:
        prepared = prepare(bench)
        runner = bench.device.runner(prepared.calls)
        steady = Patience(limit_s=steady_s, spread_fraction=0.0)
        measured(runner, steady)  # clocks and the sensor settle
        with metering(bench.device.sensor) as reading:
            found = measured(runner, steady)
        sensor = bench.device.sensor
        row = {
            **key,
            **bench.labels(),
            "latency_us": found.median_s / MICROSECOND_S,
            "power_w": reading.mean_w,
            "power_limit_w": None if sensor is None else sensor.limit_w,
        }
        return [Written("power", row)]

    return Point("power", key, run, needed_bytes)
