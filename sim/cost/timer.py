"""How long one engine step takes: every operator's work priced by the laws of one chip.

`StepTimer` is the readable form: give it the sums of a batch and it returns seconds, or the list
of operators behind them. `sim.cost.table` compiles it.

A step of a pipeline is ``runs * stage + micro_batches * head``: all stages take the time of the
slowest one, which goes by once for every micro-batch, but at least once for every stage; what
comes after the last layer is done once per micro-batch (`sim.cost.shares`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatchmethod
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.cost.comms import Network
from sim.cost.execution import PLAIN, Execution, decoding, padded
from sim.cost.kernels import KernelShelf
from sim.cost.launches import launches
from sim.cost.memory import NO_DETOUR, Detour
from sim.cost.operators import (
    Collective,
    DecodeAttention,
    DenseGemm,
    Elementwise,
    ExpertExchange,
    ExpertGemm,
    Handover,
    IndexScores,
    Operator,
    PatchAttention,
    PrefillAttention,
    PrefixExpansion,
    StateUpdate,
)
from sim.cost.shares import Counts, Shares
from sim.cost.work import Number, StepShape, Work
from sim.efficiency import MlaDecodeKernel, PowerLaw, PrefillAttentionKernel
from sim.errors import InputError
from sim.hardware import Accelerator
from sim.overhead import EngineOverhead
from sim.parallelism import Parallelism
from sim.precision import ACTIVATION_BYTES, compute_dtype
from sim.units import DTYPE_BYTES, Dtype

Array = npt.NDArray[np.float64]

ELEMENTWISE_EFFICIENCY = 0.8
"""Fraction of peak memory bandwidth that fused elementwise kernels reach: assumed, of the order
of the copy bandwidths measured on H100 (2.9 of 3.35 TB/s) and H200 (4.0 of 4.8 TB/s)."""

SCAN_EFFICIENCY = 0.4
"""Fraction of the arithmetic peak that index scores and the scan of linear attention reach in
prompts: assumed, of the order of fitted prefill attention."""

PREFIX_ROWS = 1e6
"""Rows between which and twice as many the time of a product per further row is read off."""

LOAD_PROBE = 1.5
"""Load of the fullest expert rank at which the growth of a step with it is read off: of the order
of what unbalanced routers give (`sim.routing`)."""

Bound = Literal["compute", "memory", "network", "overhead"]


class Placement(NamedTuple):
    """How a replica lies on its chips and runs its steps."""

    shares: Shares
    """How they share its batch."""
    detour: Detour = NO_DETOUR
    """What bytes cost beside the time of the fastest memory."""
    execution: Execution = PLAIN
    """Padded sizes, time of the host, drafts."""


ONE_CHIP = Shares(Parallelism(tp=1), chunk_tokens=1)
"""Every chip sees the whole batch."""
ON_ONE_CHIP = Placement(ONE_CHIP)


@dataclass(frozen=True)
class OperatorTime:
    """One operator of a step: what it does, how long it takes and why."""

    name: str
    calls: float
    """Per step and chip."""
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
        From `sim.cost.layers.operators`.
    accelerator : Accelerator
    kernels : KernelShelf
        The fitted laws that the serving engine's kernels follow on this chip.
    network : Network
        Collectives between the chips of the replica.
    overhead : EngineOverhead
        Host and launch time that no kernel measurement contains.
    placement : Placement
        How a replica lies on its chips and runs its steps.

    Raises
    ------
    InputError
        Drafts on a pipeline of several stages.
    """

    def __init__(
        self,
        operators: Iterable[Operator],
        accelerator: Accelerator,
        kernels: KernelShelf,
        network: Network,
        overhead: EngineOverhead,
        placement: Placement = ON_ONE_CHIP,
    ) -> None:
        self.operators = tuple(operators)
        self.accelerator = accelerator
        self.kernels = kernels
        self.network = network
        self.overhead = overhead
        self.placement = placement
        self.shares, self.detour, self.execution = placement
        if self.execution.speculation is not None:
            if self.shares.parallelism.pp > 1:
                raise InputError(
                    "speculative decoding on a pipeline is not modelled: set parallelism.pp to 1 "
                    "or leave the speculation out",
                    key="parallelism.pp",
                )
            self.shares = replace(self.shares, queries=self.execution.queries)
        self._bandwidth = accelerator.local_memory.bandwidth_bytes_per_s.value
        self._layers = sum(op.calls for op in self.operators if _mixes_tokens(op))
        self._dealt_layers = sum(
            op.calls for op in self.operators if isinstance(op, ExpertGemm) and op.ranks > 1
        )
        self._kernels = sum(op.calls * launches(op) for op in self.operators)

    def with_overhead(self, overhead: EngineOverhead) -> "StepTimer":
        """Return the same timer with another overhead."""
        return self._changed(self.network, overhead, self.placement)

    def with_operator(self, operator: Operator) -> "StepTimer":
        """Return the same timer with one operator more."""
        listed = (*self.operators, operator)
        return StepTimer(
            listed, self.accelerator, self.kernels, self.network, self.overhead, self.placement
        )

    def of_mean_chip(self) -> "StepTimer":
        """Return the same timer with the experts of the mean rank, whose work energy counts.

        Times of it are nobody's: a step waits for the slowest rank.
        """
        listed = [
            replace(op, mean_rank=True) if isinstance(op, ExpertGemm) else op
            for op in self.operators
        ]
        placement = self._drafting(StepTimer.of_mean_chip)
        return StepTimer(
            listed, self.accelerator, self.kernels, self.network, self.overhead, placement
        )

    def with_network(self, network: Network) -> "StepTimer":
        """Return the same timer with another network, which the drafter uses too.

        With `Network.degraded` it says how long steps take while links are down or slow.
        """
        placement = self._drafting(lambda drafter: drafter.with_network(network))
        return self._changed(network, self.overhead, placement)

    def _drafting(self, changed: Callable[["StepTimer"], "StepTimer"]) -> Placement:
        """Give the placement with the drafter's timer changed, if there is one."""
        drafting = self.execution.speculation
        if drafting is None or drafting.drafter is None:
            return self.placement
        speculation = replace(drafting, drafter=changed(drafting.drafter))
        return self.placement._replace(execution=replace(self.execution, speculation=speculation))

    def _changed(
        self, network: Network, overhead: EngineOverhead, placement: Placement
    ) -> "StepTimer":
        return StepTimer(
            self.operators,
            self.accelerator,
            self.kernels,
            network,
            overhead,
            placement,
        )

    def seconds(self, shape: StepShape, expert_load: float = 1.0) -> float:
        """Time of one step: all operators one after the other, the engine, drafts, the host.

        Parameters
        ----------
        shape : StepShape
            Of the whole replica, as the engine counts it: without drafts and padding.
        expert_load : float
            Visits of the fullest expert rank over what the law of routing expects.
        """
        device_s = max(self.device_s(shape, expert_load), self.launch_s(shape))
        host_s = self.host_s(shape)
        return max(device_s, host_s) if self.execution.host.overlapped else device_s + host_s

    def device_s(self, shape: StepShape, expert_load: float = 1.0) -> float:
        """Time of one step without `host_s` and `launch_s`."""
        dealt = self._dealt(shape)
        timed = [(op, float(self.time(op, shape).seconds)) for op in self.operators]
        drafts_s = sum(float(row.seconds) for row in self.drafts(shape))
        total = sum(s for _, s in timed) + self.overhead_s(shape) + _bubbles_s(timed, dealt)
        return total + drafts_s + self.imbalance_s(shape, expert_load)

    def launch_s(self, shape: StepShape) -> float:
        """Time that the host needs to launch a step kernel by kernel; 0 where a graph holds it."""
        if not (self.execution.eager_prompts and shape.prefill_tokens):
            return 0.0
        return float(self._dealt(shape).runs * self.run_launch_s)

    @property
    def run_launch_s(self) -> float:
        """Time that the host needs to launch the kernels of one run of one stage."""
        return float(self._kernels * self.overhead.launch_s)

    def host_s(self, shape: StepShape) -> float:
        """Time of the host for one step, to be waited for or hidden (`HostTime`)."""
        sequences = shape.decode_sequences + shape.prefill_sequences
        fullest = np.ceil(sequences / self.shares.parallelism.attention_dp)
        return float(self.execution.host.seconds(fullest))

    def overhead_s(self, shape: StepShape) -> float:
        """Engine time of one step that belongs to no operator.

        Stages prepare their inputs and launch their layers each time they run, idle or not; what
        is done for each sequence is done once, by the engine of its rank, and in compiled shapes
        for padding too.
        """
        dealt = self._dealt(shape)
        rank = self.shares.rank(shape, dealt)._replace(queries=self.shares.queries)
        decode = padded(self.execution.padding, rank).decode_sequences
        sequences = float(dealt.micro_batches * (decode + dealt.prompts))
        all_s = self.stage_overhead_s + self.overhead.sequence_s * sequences
        launched = self.execution.padding.eager(self.shares.queries * dealt.decode, dealt.prefill)
        eager_s = float(dealt.runs) * self.eager_s * launched
        return float(all_s + (dealt.runs - 1) * self.stage_overhead_s + eager_s)

    @property
    def eager_s(self) -> float:
        """Time that one run of one stage takes longer without a graph."""
        return float(self._layers * self.execution.padding.eager_layer_s)

    @property
    def stage_overhead_s(self) -> float:
        """Engine time of one run of one stage, whatever is in it."""
        return float(
            self.overhead.seconds(
                layers=self._layers, dealt_layers=self._dealt_layers, sequences=0.0
            )
        )

    def explain(self, shape: StepShape, expert_load: float = 1.0) -> list[OperatorTime]:
        """List the operators that have something to do in a step, and the engine's overhead.

        Operators of a drafter stand behind those of the model, ``draft_`` before their names.

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
        seconds = [float(row.seconds) for row in timed]
        idle_s = _bubbles_s(zip(self.operators, seconds, strict=True), self._dealt(shape))
        if idle_s > 0:
            rows.append(_waiting("pipeline_bubble", idle_s, BUBBLE))
        overhead_s = self.overhead_s(shape)
        source = self.kernels.overhead_source
        rows += [row for row in self.drafts(shape) if float(row.seconds) > 0]
        imbalance_s = self.imbalance_s(shape, expert_load)
        if imbalance_s:
            rows.append(_waiting("expert_imbalance", imbalance_s, "stated: law of the scenario"))
        device_s = self.device_s(shape, expert_load)
        launching_s = max(0.0, self.launch_s(shape) - device_s)
        if launching_s > 0:
            rows.append(_waiting("launches", launching_s, source))
        host_s, source_of_host = self.host_s(shape), "stated: host time of the engine"
        if self.execution.host.overlapped:
            host_s = max(0.0, host_s - device_s - launching_s)
        if host_s > 0:
            rows.append(_waiting("host", host_s, source_of_host))
        rows.append(_waiting("engine_overhead", overhead_s, source))
        return rows

    def time(self, operator: Operator, shape: StepShape) -> OperatorTime:
        """Price one operator on the slowest chip: of all micro-batches, bubbles left out.

        Parameters
        ----------
        operator : Operator
        shape : StepShape
            Of the whole replica; fields may be arrays.
        """
        if self.shares.whole and self.execution is PLAIN:
            return self.time_once(operator, shape)
        once = self.time_once(operator, self._seen(operator, shape))
        return once if self.shares.whole else _repeated(once, self._dealt(shape).micro_batches)

    def time_once(self, operator: Operator, shape: StepShape) -> OperatorTime:
        """Price one operator in one micro-batch.

        Parameters
        ----------
        operator : Operator
        shape : StepShape
            What the operator sees of the micro-batch; fields may be arrays.
        """
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

    def drafts(self, shape: StepShape) -> list[OperatorTime]:
        """Price the passes of the drafter in one step: nothing without one."""
        drafting = self.execution.speculation
        if drafting is None or drafting.drafter is None:
            return []
        drafter = drafting.drafter
        first = replace(self.shares, queries=drafting.first_queries)
        later = replace(self.shares, queries=1)
        passes = ((1, first, shape), (drafting.draft_tokens - 1, later, decoding(shape)))
        rows = []
        for op in drafter.operators:
            priced = [
                _repeated(drafter.time_once(op, _part(op, shares, batch)), times)
                for times, shares, batch in passes
            ]
            rows.append(_together(f"draft_{op.name}", priced))
        overhead_s = 0.0
        for times, shares, batch in passes:
            dealt = _deal(shares, batch)
            sequences = float(dealt.decode + dealt.prompts)
            if sequences:
                each_s = drafter.stage_overhead_s + drafter.overhead.sequence_s * sequences
                overhead_s += times * each_s
        rows.append(_waiting("draft_overhead", overhead_s, drafter.kernels.overhead_source))
        return rows

    def imbalance_s(self, shape: StepShape, expert_load: float) -> float:
        """Time that a step takes longer where the fullest expert rank has another load.

        A straight line through `LOAD_PROBE`, so that whole steps of load add up to whole ticks.
        """
        if expert_load == 1.0:
            return 0.0
        slope_s = sum(
            float(self.load_slope(op, self._seen(op, shape), _seconds)) for op in self.operators
        )
        return (expert_load - 1.0) * float(self._dealt(shape).runs) * slope_s

    def load_slope(
        self, operator: Operator, shape: StepShape, quantity: Callable[[OperatorTime], Number]
    ) -> Number:
        """Growth of a quantity of one call by the load of the fullest expert rank.

        Parameters
        ----------
        operator : Operator
        shape : StepShape
            What the operator sees of the micro-batch.
        quantity : callable
        """
        if not isinstance(operator, ExpertGemm):
            return 0.0
        loaded = quantity(self.time_once(operator, shape._replace(expert_load=LOAD_PROBE)))
        return (loaded - quantity(self.time_once(operator, shape))) / (LOAD_PROBE - 1.0)

    def _seen(self, operator: Operator, shape: StepShape) -> StepShape:
        """Give what an operator sees of a micro-batch, drafts and padding included."""
        dealt, padding = self._dealt(shape), self.execution.padding
        rank = self.shares.rank(shape, dealt)._replace(queries=self.shares.queries)
        ranks = self.shares.parallelism.attention_dp
        if operator.scope != "group" or ranks == 1:
            return padded(padding, rank)
        tokens = dealt.group_tokens
        if padding.active:
            extra = padding.filling(rank.decode_tokens, rank.prefill_tokens)
            eager = padding.eager(rank.decode_tokens, rank.prefill_tokens)
            tokens = np.where(eager, tokens, ranks * (rank.tokens + extra))
        return StepShape(prefill_tokens=tokens)

    def _dealt(self, shape: StepShape) -> Counts:
        """Deal a batch out to the chips."""
        return _deal(self.shares, shape)

    @singledispatchmethod
    def _price(self, operator: Operator, shape: StepShape) -> _Call:
        """Work and time of one call of an operator as its kernel was measured, alone."""
        raise TypeError(f"no way to price {operator!r} of {shape!r}")

    @_price.register
    def _(self, operator: DenseGemm, shape: StepShape) -> _Call:
        kernel, source = self.kernels.gemm(operator)
        work = operator.work(shape, kernel.activation_dtype)
        detour_s = operator.streamed_bytes(shape) * self.detour.weights_s_per_byte
        compute_s, memory_s = self._light(kernel.compute_dtype, work, detour_s)
        inputs = operator.local_rows(shape) * (operator.batch * operator.k)
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
        detour_s = operator.streamed_bytes(shape) * self.detour.weights_s_per_byte
        compute_s, memory_s = self._light(kernel.compute_dtype, work, detour_s)
        vector_s = operator.hidden * self._element_s(kernel.activation_dtype)
        seconds = kernel.law.seconds(
            compute_s=compute_s,
            memory_s=memory_s,
            pick_s=_array(operator.visited(shape) * vector_s),
            token_s=_array(shape.tokens * vector_s),
            local_experts=float(operator.local_experts),
        )
        return _Call(work, seconds, compute_s, memory_s, kernel.law.floor_s, source)

    @_price.register
    def _(self, operator: DecodeAttention, shape: StepShape) -> _Call:
        kernel, source = self.kernels.decode_attention(operator)
        work = operator.work(shape)
        detour_s = work.bytes * self.detour.kv_s_per_byte
        compute_s, memory_s = self._light(kernel.compute_dtype, work, detour_s)
        rows = np.maximum(_array(shape.decode_sequences * operator.kv_heads), 1.0)
        tiles, padding = 1, 1.0
        if isinstance(kernel, MlaDecodeKernel):
            heads = operator.heads * shape.queries  # queries of a sequence lie side by side
            tiles, padding = kernel.tiles(heads), kernel.padding(heads)
        seconds = kernel.law.seconds(
            rows=rows, memory_s=memory_s, compute_s=compute_s * padding, tiles=float(tiles)
        )
        return _Call(work, seconds, compute_s, memory_s, kernel.law.floor_s, source)

    @_price.register
    def _(self, operator: PrefillAttention, shape: StepShape) -> _Call:
        kernel, source = self.kernels.prefill_attention(operator)
        fresh = operator.work(shape._replace(prefill_context_tokens=0))
        compute_s, token_s = self._light(kernel.compute_dtype, fresh)
        computed_s = compute_s
        if isinstance(kernel, PrefillAttentionKernel) and kernel.masked:
            whole = replace(operator, windowed=False).work(shape)
            computed_s, _ = self._light(kernel.compute_dtype, whole)
        seconds = kernel.law.seconds(compute_s=computed_s, token_s=token_s)
        # the cached keys stream in behind the arithmetic on them, unless that is shorter
        prefix = operator.prefix(shape)
        detour_s = prefix.bytes * self.detour.kv_s_per_byte
        prefix_s, read_s = self._light(kernel.compute_dtype, prefix, detour_s)
        wait_s = read_s / ELEMENTWISE_EFFICIENCY - prefix_s / kernel.law.compute_efficiency
        seconds = seconds + np.maximum(wait_s, 0.0)
        work = operator.work(shape)
        return _Call(work, seconds, compute_s, token_s + read_s, kernel.law.floor_s, source)

    @_price.register
    def _(self, operator: PrefixExpansion, shape: StepShape) -> _Call:
        """As long as those rows make a large product longer, and the traffic of what comes out."""
        kernel, _ = self.kernels.gemm(operator.product)
        large, larger = (
            self._price(operator.product, StepShape(prefill_tokens=rows)).seconds
            for rows in (PREFIX_ROWS, 2 * PREFIX_ROWS)
        )
        work = operator.work(shape)
        detour_s = shape.rows(operator.rows) * operator.latent_bytes * self.detour.kv_s_per_byte
        compute_s, memory_s = self._light(kernel.compute_dtype, work, detour_s)
        row_s = (larger - large) / PREFIX_ROWS
        read_s = operator.latent_bytes + operator.product.n * ACTIVATION_BYTES
        read_s /= self._bandwidth * ELEMENTWISE_EFFICIENCY  # the product writes the other copy
        seconds = shape.rows(operator.rows) * (row_s + read_s) + _array(detour_s)
        source = f"assumed: rows of a large {operator.product.name}"
        return _Call(work, _array(seconds), compute_s, memory_s, 0.0, source)

    @_price.register
    def _(self, operator: Elementwise, shape: StepShape) -> _Call:
        work = operator.work(shape)
        memory_s = _array(work.bytes) / self._bandwidth
        source = f"assumed: {ELEMENTWISE_EFFICIENCY:.0%} of peak bandwidth"
        seconds = memory_s / ELEMENTWISE_EFFICIENCY
        return _Call(work, seconds, 0.0 * memory_s, memory_s, 0.0, source)

    @_price.register
    def _(self, operator: IndexScores, shape: StepShape) -> _Call:
        """Score every key: arithmetic and traffic one after the other, which keeps it affine."""
        work = operator.work(shape)
        decoding = operator.rows == "decode_sequences"
        detour_s = work.bytes * (self.detour.kv_s_per_byte if decoding else 0.0)
        dtype = compute_dtype(operator.dtype, self.accelerator.peak_flop_per_s)
        return self._assumed(dtype, work, detour_s)

    @_price.register
    def _(self, operator: StateUpdate, shape: StepShape) -> _Call:
        work = operator.work(shape)
        decoding = operator.rows == "decode_sequences"
        detour_s = work.bytes * (self.detour.kv_s_per_byte if decoding else 0.0)
        dtype = compute_dtype("bf16", self.accelerator.peak_flop_per_s)
        return self._assumed(dtype, work, detour_s)

    def _assumed(self, dtype: Dtype, work: Work, detour_s: Number) -> _Call:
        """Price a kernel that nobody has measured."""
        compute_s, memory_s = self._light(dtype, work, detour_s)
        seconds = compute_s / SCAN_EFFICIENCY + memory_s / ELEMENTWISE_EFFICIENCY
        source = (
            f"assumed: {ELEMENTWISE_EFFICIENCY:.0%} of peak bandwidth and "
            f"{SCAN_EFFICIENCY:.0%} of peak arithmetic, one after the other"
        )
        return _Call(work, seconds, compute_s, memory_s, 0.0, source)

    @_price.register
    def _(self, operator: Collective, shape: StepShape) -> _Call:
        payload = operator.payload_bytes(shape)
        chips = self.shares.parallelism.chips
        seconds, source = self.network.collective(
            operator.operation, operator.group, chips, payload
        )
        return _on_the_wire(operator.work(shape), seconds, source)

    @_price.register
    def _(self, operator: Handover, shape: StepShape) -> _Call:
        work = operator.work(shape)
        seconds = operator.latency_s + _array(work.bytes) / operator.bytes_per_s
        return _on_the_wire(work, seconds, operator.source)

    @_price.register
    def _(self, operator: ExpertExchange, shape: StepShape) -> _Call:
        chips = self.shares.parallelism.chips
        seconds, source = self.network.expert_exchange(operator, shape.tokens, chips)
        hidden = self.shares.parallelism.exchange_overlap_fraction
        if hidden:
            source += f"; {hidden:.0%} of it stated to be hidden"
        return _on_the_wire(operator.work(shape), (1.0 - hidden) * seconds, source)

    def joules(self, timed: OperatorTime, law: PowerLaw) -> Number:
        """Energy of one chip during one operator.

        The power law is linear in the utilisations, so energy is linear in time and in the
        speed-of-light times, up to the board's limit.
        """
        tdp_w = self.accelerator.power.tdp_w.value
        awake = law.active_fraction * timed.seconds
        work = law.compute_weight * timed.compute_s + law.memory_weight * timed.memory_s
        return tdp_w * np.minimum(awake + work, timed.seconds)

    def _light(self, dtype: Dtype, work: Work, detour_s: Number = 0.0) -> tuple[Array, Array]:
        """Speed-of-light times of arithmetic and memory traffic, detours included."""
        compute_s = _array(work.flop) / self.kernels.peak_flop_per_s(dtype)
        return compute_s, _array(work.bytes) / self._bandwidth + _array(detour_s)

    def _element_s(self, dtype: Dtype) -> float:
        """Speed-of-light time of reading one 16-bit activation and writing it in a format."""
        return (ACTIVATION_BYTES + DTYPE_BYTES[dtype]) / self._bandwidth

    def _conversion_s(self, dtype: Dtype) -> float:
        """Speed-of-light time of turning one activation into the format of a product."""
        return 0.0 if dtype == "bf16" else self._element_s(dtype)


def _seconds(timed: OperatorTime) -> Number:
    return timed.seconds


def _deal(shares: Shares, shape: StepShape) -> Counts:
    """Deal a batch out to the chips."""
    return shares.counts(shape.decode_sequences, shape.prefill_sequences, shape.prefill_tokens)


def _part(operator: Operator, shares: Shares, shape: StepShape) -> StepShape:
    """Give what an operator sees of a batch."""
    dealt = _deal(shares, shape)
    if operator.scope == "group" and shares.parallelism.attention_dp > 1:
        return shares.group(shape, dealt)
    return shares.rank(shape, dealt)._replace(queries=shares.queries)


def _repeated(timed: OperatorTime, times: float) -> OperatorTime:
    """Do an operator several times."""
    return replace(
        timed,
        calls=timed.calls * times,
        flop=timed.flop * times,
        bytes=timed.bytes * times,
        seconds=timed.seconds * times,
        compute_s=timed.compute_s * times,
        memory_s=timed.memory_s * times,
    )


def _together(name: str, rows: Sequence[OperatorTime]) -> OperatorTime:
    """Add up rows of one operator."""
    return OperatorTime(
        name,
        sum(row.calls for row in rows),
        sum(row.flop for row in rows),
        sum(row.bytes for row in rows),
        sum(row.seconds for row in rows),
        sum(row.compute_s for row in rows),
        sum(row.memory_s for row in rows),
        rows[0].source,
    )


def _waiting(name: str, seconds: float, source: str) -> OperatorTime:
    """Describe time in which the chip does nothing."""
    return OperatorTime(name, 1, 0.0, 0.0, seconds, 0.0, 0.0, source)


def _array(value: Number) -> Array:
    """Make an array of a count, of no dimension if it is one number."""
    return np.asarray(value, dtype=np.float64)


def _on_the_wire(work: Work, seconds: Array, source: str) -> _Call:
    """Describe an exchange, which neither computes nor counts as memory traffic."""
    zero = 0.0 * seconds
    return _Call(work, seconds, zero, zero, 0.0, source)


BUBBLE = "arithmetic: stages that wait for the micro-batches before and after"


def _mixes_tokens(operator: Operator) -> bool:
    """Tell whether an operator counts its layer: one such operator per layer with attention."""
    if isinstance(operator, StateUpdate):
        return operator.rows == "decode_sequences"
    return isinstance(operator, DecodeAttention | PatchAttention)


def _bubbles_s(timed: Iterable[tuple[Operator, float]], dealt: Counts) -> float:
    """Time in which a stage has no micro-batch: there are fewer of them than stages.

    Parameters
    ----------
    timed : iterable of (Operator, float)
        Seconds of all micro-batches together.
    dealt : Counts
    """
    batches = int(dealt.micro_batches)
    waiting = int(dealt.runs) - batches
    if not waiting:
        return 0.0
    return waiting / batches * sum(s for operator, s in timed if operator.scope != "head")
