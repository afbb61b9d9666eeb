"""How long one engine step takes: every operator's work priced by the laws of one chip.

`StepTimer` is the readable form: give it the sums of a batch and it returns seconds, or the list
of operators behind them. `StepTable` is the compiled form: since each operator depends on one
count of the batch and is affine in the attention sums, a whole step is a few table look-ups.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import singledispatchmethod
from typing import Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from sim.cost.comms import Network
from sim.cost.kernels import KernelShelf
from sim.cost.operators import (
    AllReduce,
    DecodeAttention,
    DenseGemm,
    Elementwise,
    ExpertExchange,
    ExpertGemm,
    Operator,
    PrefillAttention,
)
from sim.cost.work import Number, Rows, StepShape, Work
from sim.efficiency import PowerLaw
from sim.hardware import Accelerator
from sim.overhead import EngineOverhead
from sim.precision import ACTIVATION_BYTES
from sim.units import DTYPE_BYTES, Dtype

Array = npt.NDArray[np.float64]

ELEMENTWISE_EFFICIENCY = 0.8
"""Fraction of peak memory bandwidth that fused elementwise kernels reach: assumed, of the order
of the copy bandwidths measured on H100 (2.9 of 3.35 TB/s) and H200 (4.0 of 4.8 TB/s)."""

Bound = Literal["compute", "memory", "network", "overhead"]


@dataclass(frozen=True)
class OperatorTime:
    """One operator of a step: what it does, how long it takes and why."""

    name: str
    calls: int
    flop: Number
    """Per step and chip."""
    bytes: Number
    """Memory traffic per step and chip; message bytes for an exchange between chips."""
    seconds: Number
    """Per step: all calls together."""
    compute_s: Number
    """Speed-of-light time of the FLOP."""
    memory_s: Number
    """Speed-of-light time of the memory traffic."""
    source: str
    """Where the efficiency comes from."""

    @property
    def bound(self) -> Bound:
        """What limits this operator: the larger speed-of-light time, unless most is overhead."""
        light_s = max(float(self.compute_s), float(self.memory_s))
        if light_s == 0.0 and float(self.bytes) > 0.0:
            return "network"
        if light_s <= OVERHEAD_BOUND * float(self.seconds):
            return "overhead"
        return "compute" if self.compute_s > self.memory_s else "memory"


OVERHEAD_BOUND = 0.25
"""An operator whose speed-of-light time is below this fraction of its time is overhead-bound."""


class _Call(NamedTuple):
    """One call of an operator, before what the engine saves on it."""

    work: Work
    seconds: Array
    compute_s: Array
    memory_s: Array
    floor_s: float
    """The part of the time that does not depend on the work."""
    source: str


class StepTimer:
    """Prices the operators of one model's step on one chip of a replica.

    Parameters
    ----------
    operators : iterable of Operator
        From `sim.cost.work.operators`.
    accelerator : Accelerator
    kernels : KernelShelf
        The fitted laws that the serving engine's kernels follow on this chip.
    network : Network
        Collectives between the chips of the replica.
    overhead : EngineOverhead
        Host and launch time that no kernel measurement contains.
    """

    def __init__(
        self,
        operators: Iterable[Operator],
        accelerator: Accelerator,
        kernels: KernelShelf,
        network: Network,
        overhead: EngineOverhead,
    ) -> None:
        self.operators = tuple(operators)
        self.accelerator = accelerator
        self.kernels = kernels
        self.network = network
        self.overhead = overhead
        self._bandwidth = accelerator.local_memory.bandwidth_bytes_per_s.value
        self._layers = sum(op.calls for op in self.operators if isinstance(op, DecodeAttention))

    def with_overhead(self, overhead: EngineOverhead) -> "StepTimer":
        """Return the same timer with another overhead."""
        return StepTimer(self.operators, self.accelerator, self.kernels, self.network, overhead)

    def seconds(self, shape: StepShape) -> float:
        """Time of one step: all operators one after the other, and the engine's overhead."""
        timed = (float(self.time(op, shape).seconds) for op in self.operators)
        return sum(timed) + self.overhead_s(shape)

    def overhead_s(self, shape: StepShape) -> float:
        """Engine time of one step that belongs to no operator."""
        return float(self.overhead.seconds(layers=self._layers, sequences=float(shape.sequences)))

    def explain(self, shape: StepShape) -> list[OperatorTime]:
        """List the operators that have something to do in a step, and the engine's overhead.

        The rows add up to `seconds`. Work is arithmetic on the shape of the model. One sequence
        with 1024 tokens of context, Llama 3.1 70B in FP8 over eight chips, 80 layers: the gate
        and up projection of one token does 80 * 2 * 8192 * 7168 FLOP and reads 80 * (8192 * 7168
        weights + 8192 in) bytes and writes 80 * 7168 * 2 bytes; attention reads 80 * 1024 keys
        and values of 128 bytes each.

        >>> from sim.catalog import open_catalog
        >>> from sim.deployment import deploy
        >>> from sim.scenario import load_scenario
        >>> catalog = open_catalog()
        >>> settings = [("parallelism.tp", "8"), ("curve", "null")]
        >>> case = load_scenario(catalog.path("scenarios", "quickstart"), settings).cases[0]
        >>> timer = deploy(case, catalog).timer
        >>> shape = StepShape(decode_sequences=1, decode_context_tokens=1024)
        >>> rows = {row.name: row for row in timer.explain(shape)}
        >>> gate_up, attention = rows["mlp_gate_up"], rows["attention_decode"]
        >>> int(gate_up.flop) == 80 * 2 * 8192 * 7168
        True
        >>> int(gate_up.bytes) == 80 * (8192 * 7168 + 8192 + 7168 * 2)
        True
        >>> int(attention.flop) == 80 * 1024 * 2 * 8 * (128 + 128)
        True
        >>> int(attention.bytes) == 80 * 1024 * 2 * 128
        True
        >>> bool(abs(sum(row.seconds for row in rows.values()) / timer.seconds(shape) - 1) < 1e-9)
        True

        With 64 such sequences the weights are still read once, the activations 64 times:

        >>> shape = StepShape(decode_sequences=64, decode_context_tokens=64 * 1024)
        >>> rows = {row.name: row for row in timer.explain(shape)}
        >>> int(rows["mlp_gate_up"].flop) == 64 * 80 * 2 * 8192 * 7168
        True
        >>> int(rows["mlp_gate_up"].bytes) == 80 * (8192 * 7168 + 64 * (8192 + 7168 * 2))
        True
        >>> int(rows["attention_decode"].bytes) == 64 * 80 * 1024 * 2 * 128
        True

        A prompt of 8192 tokens has 8192 * 8193 / 2 pairs of a query and a key that it may see:

        >>> pairs = 8192 * 8193 // 2
        >>> shape = StepShape(prefill_sequences=1, prefill_tokens=8192, prefill_pairs=pairs)
        >>> rows = {row.name: row for row in timer.explain(shape)}
        >>> int(rows["mlp_gate_up"].flop) == 8192 * 80 * 2 * 8192 * 7168
        True
        >>> int(rows["attention_prefill"].flop) == 80 * pairs * 2 * 8 * (128 + 128)
        True
        >>> rows["mlp_gate_up"].bound, rows["attention_prefill"].bound
        ('compute', 'compute')
        """
        timed = [self.time(op, shape) for op in self.operators]
        rows = [row for row in timed if float(row.seconds) > 0]
        overhead_s = self.overhead_s(shape)
        source = self.kernels.overhead_source
        rows.append(OperatorTime("engine_overhead", 1, 0.0, 0.0, overhead_s, 0.0, 0.0, source))
        return rows

    def time(self, operator: Operator, shape: StepShape) -> OperatorTime:
        """Price one operator; fields of ``shape`` may be arrays."""
        call = self._price(operator, shape)
        in_engine_s = call.seconds - (1.0 - self.overhead.floor_fraction) * call.floor_s
        busy = np.sign(shape.rows(operator.rows))
        calls = operator.calls
        return OperatorTime(
            operator.name,
            calls,
            calls * call.work.flop,
            calls * call.work.bytes,
            calls * in_engine_s * busy,
            calls * call.compute_s,
            calls * call.memory_s,
            call.source,
        )

    @singledispatchmethod
    def _price(self, operator: Operator, shape: StepShape) -> _Call:
        """Work and time of one call of an operator as its kernel was measured, alone."""
        raise TypeError(f"no way to price {operator!r} of {shape!r}")

    @_price.register
    def _(self, operator: DenseGemm, shape: StepShape) -> _Call:
        kernel, source = self.kernels.gemm(operator)
        work = operator.work(shape, kernel.activation_dtype)
        compute_s, memory_s = self._light(kernel.compute_dtype, work)
        inputs = shape.rows(operator.rows) * (operator.batch * operator.k)
        seconds = kernel.law.seconds(
            compute_s=compute_s,
            memory_s=memory_s,
            depth=float(operator.k),
            conversion_s=_array(inputs * self._conversion_s(kernel.activation_dtype)),
        )
        return _Call(work, seconds, compute_s, memory_s, kernel.law.floor_s, source)

    @_price.register
    def _(self, operator: ExpertGemm, shape: StepShape) -> _Call:
        kernel, source = self.kernels.grouped_gemm(operator)
        work = operator.work(shape, kernel.activation_dtype)
        compute_s, memory_s = self._light(kernel.compute_dtype, work)
        vector_s = operator.hidden * self._element_s(kernel.activation_dtype)
        seconds = kernel.law.seconds(
            compute_s=compute_s,
            memory_s=memory_s,
            pick_s=_array(operator.visits(shape.tokens) * vector_s),
            token_s=_array(shape.tokens * vector_s),
        )
        return _Call(work, seconds, compute_s, memory_s, kernel.law.floor_s, source)

    @_price.register
    def _(self, operator: DecodeAttention, shape: StepShape) -> _Call:
        kernel, source = self.kernels.decode_attention(operator)
        work = operator.work(shape)
        compute_s, memory_s = self._light(kernel.compute_dtype, work)
        rows = np.maximum(_array(shape.decode_sequences * operator.kv_heads), 1.0)
        seconds = kernel.law.seconds(rows=rows, memory_s=memory_s, compute_s=compute_s)
        return _Call(work, seconds, compute_s, memory_s, kernel.law.floor_s, source)

    @_price.register
    def _(self, operator: PrefillAttention, shape: StepShape) -> _Call:
        kernel, source = self.kernels.prefill_attention(operator)
        work = operator.work(shape)
        compute_s, memory_s = self._light(kernel.compute_dtype, work)
        seconds = kernel.law.seconds(compute_s=compute_s, token_s=memory_s)
        return _Call(work, seconds, compute_s, memory_s, kernel.law.floor_s, source)

    @_price.register
    def _(self, operator: Elementwise, shape: StepShape) -> _Call:
        work = operator.work(shape)
        memory_s = _array(work.bytes) / self._bandwidth
        source = f"assumed: {ELEMENTWISE_EFFICIENCY:.0%} of peak bandwidth"
        seconds = memory_s / ELEMENTWISE_EFFICIENCY
        return _Call(work, seconds, 0.0 * memory_s, memory_s, 0.0, source)

    @_price.register
    def _(self, operator: AllReduce, shape: StepShape) -> _Call:
        seconds, source = self.network.all_reduce(operator, shape.tokens)
        return _on_the_wire(operator.work(shape), seconds, source)

    @_price.register
    def _(self, operator: ExpertExchange, shape: StepShape) -> _Call:
        seconds, source = self.network.expert_exchange(operator, shape.tokens)
        return _on_the_wire(operator.work(shape), seconds, source)

    def joules(self, timed: OperatorTime, law: PowerLaw) -> Number:
        """Energy of one chip during one operator.

        The power law is linear in the utilisations, so energy is linear in time and in the
        speed-of-light times, up to the board's limit.
        """
        tdp_w = self.accelerator.power.tdp_w.value
        awake = law.active_fraction * timed.seconds
        work = law.compute_weight * timed.compute_s + law.memory_weight * timed.memory_s
        return tdp_w * np.minimum(awake + work, timed.seconds)

    def _light(self, dtype: Dtype, work: Work) -> tuple[Array, Array]:
        """Speed-of-light times of arithmetic and memory traffic."""
        compute_s = _array(work.flop) / self.kernels.peak_flop_per_s(dtype)
        return compute_s, _array(work.bytes) / self._bandwidth

    def _element_s(self, dtype: Dtype) -> float:
        """Speed-of-light time of reading one 16-bit activation and writing it in a format."""
        return (ACTIVATION_BYTES + DTYPE_BYTES[dtype]) / self._bandwidth

    def _conversion_s(self, dtype: Dtype) -> float:
        """Speed-of-light time of turning one activation into the format of a product."""
        return 0.0 if dtype == "bf16" else self._element_s(dtype)


def _array(value: Number) -> Array:
    """Make an array of a count, of no dimension if it is one number."""
    return np.asarray(value, dtype=np.float64)


def _on_the_wire(work: Work, seconds: Array, source: str) -> _Call:
    """Describe an exchange, which neither computes nor counts as memory traffic."""
    zero = 0.0 * seconds
    return _Call(work, seconds, zero, zero, 0.0, source)


PROBE_TOKENS = 1e6
"""Context or pairs at which the slope of an affine attention term is read off."""


@dataclass(frozen=True)
class StepTable:
    """A quantity of a step (seconds, joules, FLOP, bytes) compiled into look-up tables.

    ``value = by_tokens[T] + by_sequences[N] + by_decode[D] + by_prefill[P]
    + per_context[D] * C + per_window_context[D] * Cw + per_pair * Q + per_window_pair * Qw``
    with the sums of `StepShape`. Exact for what is affine in the attention sums: seconds, FLOP,
    bytes. Energy is not where an operator meets the board's power limit: there the table may be
    up to 2 % low (prompts of vLLM on Hopper), well inside the error of the power law.
    """

    by_tokens: Array
    by_sequences: Array
    by_decode: Array
    per_context: Array
    per_window_context: Array
    by_prefill: Array
    per_pair: float
    per_window_pair: float

    @classmethod
    def compile(
        cls,
        timer: StepTimer,
        quantity: Callable[[OperatorTime], Number],
        overhead: Callable[[float], float],
        limits: Mapping[Rows, int],
    ) -> Self:
        """Tabulate a quantity for all counts up to the limits.

        Parameters
        ----------
        timer : StepTimer
        quantity : callable
            What to tabulate of one priced operator.
        overhead : callable
            What one second of the engine's own time contributes.
        limits : mapping
            Largest count of each kind of row.
        """
        tabulate = _Tabulator(timer, quantity, limits)
        by_tokens = tabulate.rows("tokens")
        by_sequences = tabulate.rows("sequences")
        idle_s = timer.overhead_s(StepShape())
        by_tokens[1:] += overhead(idle_s)
        sequences = np.arange(by_sequences.size, dtype=float)
        by_sequences += overhead(timer.overhead.sequence_s) * sequences
        return cls(
            by_tokens=by_tokens,
            by_sequences=by_sequences,
            by_decode=tabulate.rows("decode_sequences"),
            per_context=tabulate.decode_slope("decode_context_tokens"),
            per_window_context=tabulate.decode_slope("decode_window_tokens"),
            by_prefill=tabulate.rows("prefill_tokens"),
            per_pair=tabulate.prefill_slope("prefill_pairs"),
            per_window_pair=tabulate.prefill_slope("prefill_window_pairs"),
        )

    def fixed(self, shape: StepShape) -> Array:
        """Part of the value that does not depend on contexts; fields are integer arrays."""
        decode, prefill = np.asarray(shape.decode_sequences), np.asarray(shape.prefill_tokens)
        sequences = np.asarray(shape.sequences)
        fixed: Array = (
            self.by_tokens[decode + prefill]
            + self.by_sequences[sequences]
            + self.by_decode[decode]
            + self.by_prefill[prefill]
        )
        return fixed

    def attended(self, shape: StepShape) -> Array:
        """Part of the value that is proportional to contexts and query-key pairs."""
        decode = np.asarray(shape.decode_sequences)
        attended: Array = (
            self.per_context[decode] * shape.decode_context_tokens
            + self.per_window_context[decode] * shape.decode_window_tokens
            + self.per_pair * np.asarray(shape.prefill_pairs, dtype=float)
            + self.per_window_pair * np.asarray(shape.prefill_window_pairs, dtype=float)
        )
        return attended


@dataclass(frozen=True)
class _Tabulator:
    """Evaluates one quantity of a timer over ranges of counts."""

    timer: StepTimer
    quantity: Callable[[OperatorTime], Number]
    limits: Mapping[Rows, int]

    def rows(self, rows: Rows) -> Array:
        """Sum over the operators sized by these rows, for 0 to the limit, contexts empty."""
        counts = np.arange(self.limits[rows] + 1, dtype=float)
        return self._sum(rows, _shape_with(rows, counts), counts.size)

    def decode_slope(self, field: str) -> Array:
        """Increase per context token, by number of decoding sequences."""
        counts = np.arange(self.limits["decode_sequences"] + 1, dtype=float)
        base = StepShape(decode_sequences=counts)
        probe = base._replace(**{field: np.full(counts.size, PROBE_TOKENS)})
        at_probe = self._sum("decode_sequences", probe, counts.size)
        return (at_probe - self._sum("decode_sequences", base, counts.size)) / PROBE_TOKENS

    def prefill_slope(self, field: str) -> float:
        """Increase per query-key pair."""
        base = StepShape(prefill_tokens=np.ones(1))
        probe = base._replace(**{field: np.full(1, PROBE_TOKENS)})
        at_probe = self._sum("prefill_tokens", probe, 1)
        return float(at_probe[0] - self._sum("prefill_tokens", base, 1)[0]) / PROBE_TOKENS

    def _sum(self, rows: Rows, shape: StepShape, size: int) -> Array:
        total = np.zeros(size)
        for op in self.timer.operators:
            if op.rows == rows:
                total += self.quantity(self.timer.time(op, shape))
        return total


def _shape_with(rows: Rows, counts: Array) -> StepShape:
    """Build a batch in which one kind of row is counted by ``counts``."""
    if rows == "prefill_tokens":
        return StepShape(prefill_tokens=counts)
    return StepShape(decode_sequences=counts)
