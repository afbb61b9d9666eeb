"""How long steps take: the readable timer, the compiled tables and whole ticks agree."""

from copy import copy
from dataclasses import replace

import numpy as np
import pocket_chip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cost.execution import Execution, HostTime, Padding, Speculation
from sim.cost.operators import (
    Collective,
    DecodeAttention,
    DenseGemm,
    Elementwise,
    ExpertGemm,
    PrefillAttention,
    PrefixExpansion,
)
from sim.cost.shares import Shares
from sim.cost.table import StepTable
from sim.cost.timer import StepTimer
from sim.cost.work import StepShape
from sim.engine.clock import TICKS_PER_S
from sim.engine.requests import Request
from sim.engine.stretch import Stretch
from sim.engine.ticks import LockstepPace, Pace, pace
from sim.overhead import NO_OVERHEAD
from sim.parallelism import ChipGroup, Parallelism
from sim.routing import LOAD_UNIT, Imbalance

LOADS = np.array([1.0, 1.004, 1.1, 1.25, 1.7, 2.6])
"""Of the fullest expert rank."""
MOST = 16
"""Sequences of a rank."""
CHUNK = 64
"""Prompt tokens of a rank."""
GEMM = DenseGemm("gemm", 10, "tokens", n=1000, k=1000, dtype="fp8")
HEAD = DenseGemm("head", 1, "sequences", n=1000, k=1000, dtype="bf16", scope="head")
UP = DenseGemm("up", 10, "prefill_tokens", n=200, k=100, dtype="bf16")
OPERATORS = (
    GEMM,
    HEAD,
    UP,
    PrefixExpansion(UP, 100.0),
    DenseGemm("absorb", 10, "decode_sequences", n=100, k=200, dtype="bf16"),
    DecodeAttention("decode", 6, "gqa", 8, 1, 100, 100, 200, "fp8"),
    DecodeAttention("decode_window", 4, "gqa", 8, 1, 100, 100, 200, "fp8", windowed=True),
    PrefillAttention(
        "prefill", 6, "gqa", 8, 100, 100, "bf16", "fp8", 5000.0, prefix_bytes_per_token=200.0
    ),
    PrefillAttention("slide", 4, "gqa", 8, 100, 100, "bf16", "fp8", 5000.0, windowed=True),
    ExpertGemm("experts", 10, 1000, 500, 16, 4, 2, "fp8"),
    Elementwise("norms", 10, 4000),
    Collective("reduce", 20, "all_reduce", ChipGroup(2, 1), 2000.0),
)
DRAFTER = (
    DenseGemm("small", 2, "tokens", n=300, k=300, dtype="fp8"),
    replace(HEAD, n=500),
    DecodeAttention("decode", 1, "gqa", 8, 1, 100, 100, 200, "fp8"),
    PrefillAttention(
        "prefill", 1, "gqa", 8, 100, 100, "bf16", "fp8", 500.0, prefix_bytes_per_token=200.0
    ),
    ExpertGemm("experts", 1, 1000, 500, 16, 4, 2, "fp8"),
)
SLOW = NO_OVERHEAD.model_copy(update={"step_s": 1e-4, "layer_s": 1e-6, "sequence_s": 1e-6})
SIZES = st.lists(st.integers(1, 90), max_size=6, unique=True).map(lambda s: tuple(sorted(s)))

paddings = st.builds(
    Padding,
    decode_sizes=SIZES,
    prefill_sizes=SIZES,
    static=st.booleans(),
    eager_layer_s=st.sampled_from([0.0, 1e-6]),
)
hosts = st.builds(
    HostTime,
    step_s=st.sampled_from([0.0, 1e-5, 3e-4]),
    sequence_s=st.sampled_from([0.0, 2e-5]),
    overlapped=st.booleans(),
)


@st.composite
def speculations(draw: st.DrawFn) -> Speculation | None:
    if draw(st.booleans()):
        return None
    drafter = pocket_chip.timer(*DRAFTER, overhead=SLOW) if draw(st.booleans()) else None
    return Speculation(draw(st.integers(1, 4)), drafter, reads_verified=draw(st.booleans()))


@st.composite
def timers(draw: st.DrawFn, *, ranks: bool = True) -> StepTimer:
    """A timer of the pocket chip with any way to run steps."""
    speculation = draw(speculations())
    split = {"tp": 2}
    if ranks and draw(st.booleans()):
        kind = draw(st.sampled_from(["attention_dp", "cp"] + ["pp"] * (speculation is None)))
        split[kind] = draw(st.integers(2, 3))
    if split.get("attention_dp"):
        split["ep"] = split["tp"] * split["attention_dp"]
    operators = OPERATORS
    if split.get("attention_dp"):
        held = replace(OPERATORS[9], local_experts=16)
        operators = (*OPERATORS[:9], held, *OPERATORS[10:])
    timer = pocket_chip.timer(
        *operators,
        overhead=SLOW,
        shares=Shares(Parallelism.model_validate(split), CHUNK),
    )
    execution = Execution(draw(paddings), draw(hosts), speculation, draw(st.booleans()))
    launch_s = draw(st.sampled_from([0.0, 1e-6, 2e-5]))
    return StepTimer(
        timer.operators,
        timer.accelerator,
        timer.kernels,
        timer.network,
        timer.overhead.model_copy(update={"launch_s": launch_s}),
        timer.placement._replace(execution=execution),
    )


@st.composite
def stretches(draw: st.DrawFn, most: int = MOST) -> Stretch:
    """A batch of one rank; prompts of one length, each with as long a prefix."""
    prompts = draw(st.integers(0, 3))
    decode = draw(st.integers(0 if prompts else 1, most - prompts))
    context = decode * draw(st.integers(1, 5000))
    window = min(context, decode * 100)
    stretch = Stretch(decode, context, decode, window, draw(st.integers(0, decode)), 0)
    if prompts:
        length, cached = draw(st.integers(1, 15)), draw(st.integers(0, 3000))
        stretch.chunks = [(Request(i, 0, length, 1), length) for i in range(prompts)]
        stretch.prefill_tokens = prompts * length
        stretch.prefill_context_tokens = prompts * cached
        stretch.prefill_pairs = prompts * (length * cached + length * (length + 1) // 2)
        stretch.prefill_window_pairs = min(stretch.prefill_pairs, prompts * length * 100)
    return stretch


def shape_of(stretch: Stretch, step: int = 1) -> StepShape:
    """The sums of one step of a stretch, from 1."""
    return StepShape(
        stretch.decode_sequences,
        stretch.context_tokens + step * stretch.context_growing,
        stretch.window_tokens + step * stretch.window_growing,
        len(stretch.chunks),
        stretch.prefill_tokens,
        stretch.prefill_pairs,
        stretch.prefill_window_pairs,
        stretch.prefill_context_tokens,
    )


def compiled(timer: StepTimer) -> StepTable:
    return StepTable.compile(timer, lambda row: row.seconds, lambda s: s, MOST)


def one_step_later(stretch: Stretch, steps: int) -> Stretch:
    later = copy(stretch)
    later.context_tokens += steps * stretch.context_growing
    later.window_tokens += steps * stretch.window_growing
    return later


@settings(max_examples=150, deadline=None)
@given(timer=timers(), stretch=stretches())
def test_a_compiled_step_takes_what_the_timer_says(timer: StepTimer, stretch: Stretch) -> None:
    table, shape = compiled(timer), shape_of(stretch)
    said = timer.seconds(shape)
    start, growth, holds = pace(table).line(stretch)
    assert holds is None or holds >= 1
    # each of some look-ups is rounded to a tick, slopes of contexts too: 1e-15 s per key
    rounding = 1e-14 + 2e-15 * (float(shape.decode_context_tokens) + float(shape.prefill_pairs))
    # and what padding makes a fraction of a token is looked up on a straight line: 1e-8 of experts
    assert (start + growth) / TICKS_PER_S == pytest.approx(said, rel=1e-8, abs=rounding)
    serial_s = 0.0 if table.host_overlapped else timer.host_s(shape)
    found = float(table.fixed(shape) + table.attended(shape)) - serial_s
    found = max(found, timer.launch_s(shape)) + serial_s
    if table.host_overlapped:
        found = max(found, timer.host_s(shape))
    assert found == pytest.approx(said, rel=1e-8)


@settings(max_examples=60, deadline=None)
@given(timer=timers(), stretch=stretches())
def test_rows_of_explain_add_up_to_the_step(timer: StepTimer, stretch: Stretch) -> None:
    shape = shape_of(stretch)
    total = sum(float(row.seconds) for row in timer.explain(shape, expert_load=1.25))
    assert total == pytest.approx(timer.seconds(shape, expert_load=1.25), rel=1e-9)


def walked(found: Pace, stretch: Stretch, steps: int, before: int) -> list[int]:
    """Ticks of steps, one by one."""
    taken = []
    for step in range(steps):
        start, growth, _ = found.line(one_step_later(stretch, step), before + step)
        taken.append(start + growth)
    return taken


def jumped(found: Pace, stretch: Stretch, steps: int, before: int) -> list[int]:
    """Ticks of steps, as lines and where they hold say."""
    taken: list[int] = []
    while len(taken) < steps:
        later = one_step_later(stretch, len(taken))
        start, growth, holds = found.line(later, before + len(taken))
        most = steps - len(taken) if holds is None else min(holds, steps - len(taken))
        assert most >= 1
        taken += [start + step * growth for step in range(1, most + 1)]
    return taken


@settings(max_examples=60, deadline=None)
@given(timer=timers(), stretch=stretches(), before=st.integers(0, 50), data=st.data())
def test_jumps_are_steps(
    timer: StepTimer, stretch: Stretch, before: int, data: st.DataObject
) -> None:
    imbalance = data.draw(
        st.none() | st.builds(Imbalance, st.just(LOADS), st.integers(1, 9), st.integers(0, 5))
    )
    found = pace(compiled(timer), imbalance)
    stretch.chunks, stretch.prefill_tokens = [], 0
    if not stretch.decode_sequences:
        return
    assert jumped(found, stretch, 40, before) == walked(found, stretch, 40, before)


@settings(max_examples=60, deadline=None)
@given(timer=timers(), stretch=stretches(), period=st.integers(0, 30))
def test_a_load_of_the_experts_takes_what_the_timer_says(
    timer: StepTimer, stretch: Stretch, period: int
) -> None:
    imbalance = Imbalance(LOADS, 7, 1)
    table, shape = compiled(timer), shape_of(stretch)
    start, growth, holds = pace(table, imbalance).line(stretch, 7 * period + 3)
    assert holds is not None
    assert 1 <= holds <= 4
    said = timer.seconds(shape, imbalance.sample(period) / LOAD_UNIT)
    # what a unit of load, a key or a pair adds is rounded to a tick in the table, and again where
    # it is dealt out to several runs or filled up: less than two ticks each
    units = abs(imbalance.sample(period) - LOAD_UNIT) + shape.decode_context_tokens
    units += shape.decode_window_tokens + shape.prefill_pairs + shape.prefill_window_pairs
    rounding_s = (2 * units * (1 + len(table.drafts)) + 1_000) / TICKS_PER_S
    assert (start + growth) / TICKS_PER_S == pytest.approx(said, rel=1e-12, abs=rounding_s)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), ranks=st.integers(2, 4), pad=st.booleans())
def test_ranks_in_lockstep_take_as_long_as_the_slowest(
    data: st.DataObject, ranks: int, pad: bool
) -> None:
    """Held against the timers of the ranks, one by one."""
    alone = data.draw(timers(ranks=False))
    if alone.execution.host.overlapped or alone.execution.padding.active:
        alone = StepTimer(
            alone.operators,
            alone.accelerator,
            alone.kernels,
            alone.network,
            alone.overhead,
            alone.placement._replace(execution=Execution(speculation=alone.execution.speculation)),
        )
    group = next(op for op in alone.operators if op.scope == "group")
    batches = [data.draw(stretches()) for _ in range(ranks)]
    split = Parallelism(tp=2, attention_dp=ranks)
    joined = StepTimer(
        alone.operators,
        alone.accelerator,
        alone.kernels,
        alone.network,
        alone.overhead,
        alone.placement._replace(shares=Shares(split, CHUNK)),
    )
    start, growth, holds = LockstepPace(compiled(joined), pad_to_fullest=pad).line(batches)
    queries = alone.execution.queries
    widths = [queries * each.decode_sequences + each.prefill_tokens for each in batches]
    seen = [max(widths)] * ranks if pad else widths

    def rank_s(batch: Stretch, step: int, width: int, own: int) -> float:
        shape = shape_of(batch, step)._replace(queries=queries, padding_tokens=width - own)
        mine = (op for op in alone.operators if op.scope != "group")
        total = sum(float(alone.time_once(op, shape).seconds) for op in mine)
        return total + alone.overhead_s(shape_of(batch, step))

    if alone.execution.speculation is None or alone.execution.speculation.drafter is None:
        for step in {1, holds or 30}:
            slowest = max(
                rank_s(batch, step, width, own)
                for batch, width, own in zip(batches, seen, widths, strict=True)
            )
            together = alone.time_once(group, StepShape(prefill_tokens=sum(seen))).seconds
            host = max(alone.host_s(shape_of(batch, step)) for batch in batches)
            launch = max(alone.launch_s(shape_of(batch, step)) for batch in batches)
            said = max(slowest + float(together), launch) + host
            assert (start + step * growth) / TICKS_PER_S == pytest.approx(said, rel=1e-8, abs=1e-9)
    later = [one_step_later(batch, holds or 9) for batch in batches]
    launched = any(alone.launch_s(shape_of(batch)) for batch in batches)  # then it is one step
    if holds is not None and not launched:
        after, slope, _ = LockstepPace(compiled(joined), pad_to_fullest=pad).line(later)
        assert after + slope > start + (holds + 1) * growth


def test_arrays_are_padded_as_single_steps_are() -> None:
    padding = Padding(decode_sizes=(1, 2, 4, 8), prefill_sizes=(16, 64))
    decode = np.array([0, 1, 3, 9, 5, 0, 60])
    prefill = np.array([0, 0, 0, 0, 20, 16, 10])
    pairs = zip(decode.tolist(), prefill.tolist(), strict=True)
    singly = [(padding.filling(*pair), padding.eager(*pair)) for pair in pairs]
    assert singly == [
        (0, False),
        (0, False),
        (1, False),
        (0, True),
        (39, False),
        (0, False),
        (0, True),
    ]
    assert padding.filling(decode, prefill).tolist() == [filled for filled, _ in singly]
    assert padding.eager(decode, prefill).tolist() == [eager for _, eager in singly]
