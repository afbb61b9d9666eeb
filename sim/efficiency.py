"""How far real kernels stay from the datasheet: laws of kernel time, and the file that holds them.

Every law turns *speed-of-light times* into seconds. The speed-of-light time of an operation is
its work divided by a datasheet peak: ``compute_s = flop / peak_flop_per_s`` and
``memory_s = bytes / bandwidth_bytes_per_s``. What a law adds is fitted to measured kernels by
`sim.calibration.fit` and stored in ``hardware/calibrations/<accelerator>.yaml``, one
`Calibration` a file. The datasheet figures themselves never appear here.

All laws are pure arithmetic. Their arguments are floats or numpy arrays that broadcast against
each other, so a caller can tabulate a whole range of token counts in one call. All of them are
monotone: a longer speed-of-light time never makes an operation faster, so neither does a lower
peak. (Decode attention at a fixed total context may gain from more rows, which fill the chip.)
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from sim.precision import GemmFormat
from sim.schema import StrictModel
from sim.units import Dtype

Values = TypeVar("Values", float, NDArray[np.float64])
"""A number, or an array with one number per case."""

NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Efficiency = Annotated[float, Field(gt=0.0, le=1.0)]
"""Speed-of-light time over real time, of work so large that fixed costs vanish."""
Sharpness = Annotated[float, Field(ge=1.0, le=16.0)]
"""1: the bounds of a law add up; large: the slowest bound alone counts."""


def _chip_count(key: object) -> object:
    """Read a number of chips from a YAML key, which is always text."""
    return int(key) if isinstance(key, str) and key.isdecimal() else key


ChipCount = Annotated[int, BeforeValidator(_chip_count), Field(ge=2)]
"""Chips of a group; as a key of a YAML mapping it stands in quotes."""

Engine = Literal["trtllm", "vllm", "sglang", "native"]
"""A serving engine; its kernels are its own. ``native`` is the one that the vendor of the chip
ships: JetStream, NxD Inference, the serving stacks of Cerebras, Groq, SambaNova and Intel."""
Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]
Exchange = Literal["dispatch", "combine"]
"""The two halves of expert parallelism: tokens to their experts, and results back."""


def soft_maximum(sharpness: float, first: Values, *others: Values | float) -> Values:
    """Combine bounds on a time: their p-norm, between their maximum and their sum.

    Parameters
    ----------
    sharpness
        The exponent ``p``, 1 or more: 1 adds the bounds up, infinity takes the largest.
    first, others
        Times, seconds; not negative.

    Examples
    --------
    >>> soft_maximum(2.0, 3.0, 4.0)
    5.0
    >>> soft_maximum(1.0, 3.0, 4.0)
    7.0
    """
    total: Values = first**sharpness
    for other in others:
        total = total + other**sharpness
    result: Values = total ** (1.0 / sharpness)
    return result


MOST_KNOTS = 40
"""Knots of a grid of corrections, at most."""
STEEPEST_TIME = 0.6
STEEPEST_SIZE = 0.3
"""How fast a correction may fall along its axes: with the logarithm of the time that it corrects,
and with that of the size. Below 1 each and together, so that more work never takes less time, and
neither does the same growth of work and size."""


class Correction(StrictModel):
    """Where measured kernels leave the closed form: factors on a grid, interpolated.

    Factors multiply the time of a closed form without its floor. Between knots their logarithm is
    bilinear in the logarithms of that time and of a size of the shape; outside they stay what they
    are at the edge. They fall more slowly than the time rises, so that the corrected time rises
    wherever the closed form does, for any shape and any peak.
    """

    work_s: Annotated[tuple[Positive, ...], Field(min_length=2)]
    """Knots of the closed form without its floor, seconds, rising."""
    sizes: Annotated[tuple[Positive, ...], Field(min_length=1)]
    """Knots of the size, rising; which size that is, the law says."""
    factors: tuple[tuple[Positive, ...], ...]
    """A row for each time, in it a factor for each size."""

    @model_validator(mode="after")
    def _is_a_gentle_grid(self) -> Self:
        shape = (len(self.work_s), len(self.sizes))
        if len(self.factors) != shape[0] or any(len(row) != shape[1] for row in self.factors):
            raise ValueError(f"factors: expected {shape[0]} rows of {shape[1]}")
        if shape[0] * shape[1] > MOST_KNOTS:
            raise ValueError(f"{shape[0]} x {shape[1]} knots; at most {MOST_KNOTS} are allowed")
        times, sizes, factors = (np.log(each) for each in (self.work_s, self.sizes, self.factors))
        if np.any(np.diff(times) <= 0.0) or np.any(np.diff(sizes) <= 0.0):
            raise ValueError("work_s and sizes must rise")
        falls = np.diff(factors, axis=0) < -STEEPEST_TIME * np.diff(times)[:, None] - ROUNDED
        if np.any(falls) or np.any(
            np.diff(factors, axis=1) < -STEEPEST_SIZE * np.diff(sizes) - ROUNDED
        ):
            raise ValueError("factors fall so fast that more work may take less time")
        return self

    def of(self, work_s: Values, size: Values | float) -> Values:
        """Factor on the time of some work.

        Parameters
        ----------
        work_s
            What the closed form says without its floor, seconds; not negative.
        size
            Of the shape; positive.

        Examples
        --------
        Half way between two knots of the time, on a logarithmic scale; beyond the last one:

        >>> grid = Correction(work_s=(1e-6, 1e-4), sizes=(4.0,), factors=((1.0,), (1.44,)))
        >>> [round(float(grid.of(work_s, 8.0)), 6) for work_s in (1e-5, 1.0)]
        [1.2, 1.44]
        """
        by_time = hats(work_s, self.work_s)
        by_size = hats(size, self.sizes)
        found: Values = np.exp((by_time @ np.log(self.factors) * by_size).sum(axis=-1))
        return found


ROUNDED = 2e-3
"""How much more steeply factors rounded to four digits may fall."""


def hats(values: Values | float, knots: tuple[float, ...]) -> NDArray[np.float64]:
    """Weights of knots in a linear interpolation on a logarithmic scale, constant outside.

    Parameters
    ----------
    values
        Where to interpolate; not negative.
    knots
        Positive and rising.

    Returns
    -------
    weights
        Of the shape of the values, and a last axis for the knots; they add up to 1.

    Examples
    --------
    >>> hats(10.0, (1.0, 100.0, 1000.0)).round(6).tolist()
    [0.5, 0.5, 0.0]
    """
    marks = np.log(knots)
    inside: NDArray[np.float64] = np.log(np.clip(np.asarray(values), knots[0], knots[-1]))
    if len(knots) == 1:
        return np.ones((*inside.shape, 1))
    left = np.clip(np.searchsorted(marks, inside, side="right") - 1, 0, len(knots) - 2)
    share = (inside - marks[left]) / (marks[left + 1] - marks[left])
    each = np.arange(len(knots))
    lower, upper = each == left[..., None], each == left[..., None] + 1
    weights: NDArray[np.float64] = lower * (1.0 - share[..., None]) + upper * share[..., None]
    return weights


class GemmLaw(StrictModel):
    """Time of a dense matrix product y[m, n] = x[m, k] w[k, n].

    Three bounds meet in a soft maximum: arithmetic, memory traffic, and depth. The last one is
    the time in which a single output tile walks along ``k``; it binds when the product is so
    small that each multiprocessor has at most one tile, whatever the peaks are.
    """

    floor_s: NotNegative
    """Time of an empty product: launch inside a CUDA graph, prologue, first load."""
    compute_efficiency: Efficiency
    memory_efficiency: Efficiency
    depth_s: NotNegative
    """Seconds per element of ``k``."""
    sharpness: Sharpness
    conversion_slowdown: NotNegative
    """Time of quantising the activations before the product over its speed-of-light time."""
    tile_depth: NotNegative = 0.0
    """Filling and emptying the pipeline of an output tile, in elements of ``k`` that would take as
    long; 0: the next tile hides it. It shows where ``k`` is short."""
    correction: Correction | None = None
    """By ``k``."""

    def seconds(
        self,
        *,
        compute_s: Values,
        memory_s: Values,
        depth: float,
        conversion_s: Values,
    ) -> Values:
        """Time of one product on one chip, seconds.

        Parameters
        ----------
        compute_s
            Speed-of-light time of ``2 m n k`` flop, seconds.
        memory_s
            Speed-of-light time of weights, inputs and outputs once each, seconds.
        depth
            Length of the inner product, ``k``; 1 or more.
        conversion_s
            Speed-of-light time of reading the activations in bf16 and writing them in the format
            of the product, seconds; 0 if they are not converted.

        Returns
        -------
        seconds
            ``floor + ((c*(1 + t/depth)/ec)^p + (b/em)^p + (d*depth)^p)^(1/p) + slowdown *
            conversion`` with ``t`` the `tile_depth`; all but the floor is multiplied by the
            `Correction` if there is one, and then stays above ``c`` and ``b``.

        Examples
        --------
        Sharpness 2 and bounds of 3, 4 and 0 us give 5 us (a right triangle):

        >>> law = GemmLaw(floor_s=2e-6, compute_efficiency=0.5, memory_efficiency=0.5,
        ...               depth_s=0.0, sharpness=2.0, conversion_slowdown=1.0)
        >>> round(law.seconds(compute_s=1.5e-6, memory_s=2e-6, depth=4096.0, conversion_s=0.0), 9)
        7e-06
        """
        slowest_s = soft_maximum(
            self.sharpness,
            compute_s * (1.0 + self.tile_depth / depth) / self.compute_efficiency,
            memory_s / self.memory_efficiency,
            self.depth_s * depth,
        )
        work_s = slowest_s + self.conversion_slowdown * conversion_s
        return self.floor_s + _corrected(self.correction, work_s, depth, compute_s, memory_s)


class GroupedGemmLaw(StrictModel):
    """Time of the routed expert layers of one MoE layer on one rank, without communication.

    Both products and the activation between them; then what is done once per pick (gather,
    quantise, weigh, scatter) and once per token of the whole group, since every rank sorts all.
    """

    floor_s: NotNegative
    compute_efficiency: Efficiency
    memory_efficiency: Efficiency
    sharpness: Sharpness
    pick_slowdown: NotNegative
    token_slowdown: NotNegative
    correction: Correction | None = None
    """By the experts of a rank."""

    def seconds(
        self,
        *,
        compute_s: Values,
        memory_s: Values,
        pick_s: Values,
        token_s: Values,
        local_experts: Values | float,
    ) -> Values:
        """Time of one MoE layer on one rank, seconds.

        Parameters
        ----------
        compute_s
            Speed-of-light time of ``6 * picks * hidden * inter`` flop, seconds; picks are the
            (token, expert) pairs that land on the rank, ``inter`` is what the rank holds of it.
        memory_s
            Speed-of-light time of the weights of the experts touched on the rank, and of the
            activations of the picks, seconds.
        pick_s
            Speed-of-light time of reading the hidden vector of each pick in bf16 and writing it
            in the format of the product, seconds.
        token_s
            The same for each token of the group, seconds.
        local_experts
            Experts that the rank holds; 1 or more.

        Returns
        -------
        seconds
            ``floor + ((c/ec)^p + (b/em)^p)^(1/p) + sp * pick + st * token``; all but the floor is
            multiplied by the `Correction` if there is one, and then stays above ``c`` and ``b``.

        Examples
        --------
        20 + (30 + 40) + 2 * 1 + 3 * 4 = 104 us when the bounds add up:

        >>> law = GroupedGemmLaw(floor_s=20e-6, compute_efficiency=0.5, memory_efficiency=0.5,
        ...                      sharpness=1.0, pick_slowdown=2.0, token_slowdown=3.0)
        >>> round(law.seconds(compute_s=15e-6, memory_s=20e-6, pick_s=1e-6, token_s=4e-6,
        ...                   local_experts=8.0), 9)
        0.000104
        """
        slowest_s = soft_maximum(
            self.sharpness,
            compute_s / self.compute_efficiency,
            memory_s / self.memory_efficiency,
        )
        work_s = slowest_s + self.pick_slowdown * pick_s + self.token_slowdown * token_s
        corrected_s = _corrected(self.correction, work_s, local_experts, compute_s, memory_s)
        return self.floor_s + corrected_s


def _corrected(
    correction: Correction | None,
    work_s: Values,
    size: Values | float,
    compute_s: Values,
    memory_s: Values,
) -> Values:
    """Correct a time, which stays above its speed-of-light times."""
    if correction is None:
        return work_s
    light_s = np.maximum(compute_s, memory_s)
    found: Values = np.maximum(work_s * correction.of(work_s, size), light_s)
    return found


class DecodeAttentionLaw(StrictModel):
    """Time of attention of one new token per sequence over its cached keys and values.

    Linear in the context: at a fixed batch the time is ``constant + slope * total context``, since
    both arguments are proportional to it. A kernel starved of parallelism is described by rows
    that are not there: ``idle_rows`` extra rows are paid for but do nothing.
    """

    floor_s: NotNegative
    memory_efficiency: Efficiency
    compute_efficiency: Efficiency
    sharpness: Sharpness
    idle_rows: NotNegative
    """Rows that would fill the chip once more; half the full rate is reached at this many."""
    row_s: NotNegative
    """Fixed cost of a row, seconds."""

    def seconds(
        self, *, rows: Values, memory_s: Values, compute_s: Values, tiles: Values | float = 1.0
    ) -> Values:
        """Time of one attention layer for one decode step on one chip, seconds.

        Parameters
        ----------
        rows
            Sequences times KV heads on the chip (multi-head latent attention: sequences); > 0.
        memory_s
            Speed-of-light time of reading keys and values of all contexts, seconds.
        compute_s
            Speed-of-light time of the flop on them, seconds.
        tiles
            Tiles of query heads in a row, 1 or more.

        Returns
        -------
        seconds
            ``floor + ((b/em * (1 + idle_rows/rows))^p + (c/ec * (1 + idle_rows/(rows *
            tiles)))^p)^(1/p) + row_s * rows * tiles``.

        Examples
        --------
        Eight rows beside eight idle ones run at half the rate, 2 * 10 us / 0.5 = 40 us:

        >>> law = DecodeAttentionLaw(floor_s=1e-6, memory_efficiency=0.5, compute_efficiency=1.0,
        ...                          sharpness=2.0, idle_rows=8.0, row_s=1e-6)
        >>> round(law.seconds(rows=8.0, memory_s=10e-6, compute_s=0.0), 9)
        4.9e-05
        """
        constant_s, slope = self.line(
            rows=rows, memory_s=memory_s, compute_s=compute_s, tiles=tiles
        )
        return constant_s + slope

    def line(
        self, *, rows: Values, memory_s: Values, compute_s: Values, tiles: Values | float = 1.0
    ) -> tuple[Values, Values]:
        """Split the time at a fixed number of rows into a constant and a part for the context.

        The second part is proportional to the context: called with the speed-of-light times of
        *one* cached token, it gives the slope in seconds per token of total context.

        Returns
        -------
        constant_s, context_s
            Their sum is `seconds`.

        Examples
        --------
        >>> law = DecodeAttentionLaw(floor_s=1e-6, memory_efficiency=0.5, compute_efficiency=1.0,
        ...                          sharpness=2.0, idle_rows=8.0, row_s=1e-6)
        >>> constant_s, slope = law.line(rows=8.0, memory_s=1e-9, compute_s=0.0)
        >>> round(constant_s + slope * 10_000, 9)
        4.9e-05
        """
        crowding = 1.0 + self.idle_rows / rows
        relief = (1.0 + self.idle_rows / (rows * tiles)) / crowding
        slowest_s = soft_maximum(
            self.sharpness,
            memory_s / self.memory_efficiency,
            compute_s / self.compute_efficiency * relief,
        )
        return self.floor_s + self.row_s * rows * tiles, slowest_s * crowding


class PrefillAttentionLaw(StrictModel):
    """Time of causal attention over new tokens: affine in query-key pairs and in tokens."""

    floor_s: NotNegative
    compute_efficiency: Efficiency
    token_slowdown: NotNegative
    """Of what is done once per token (rotary, cache write, loads and stores)."""

    def seconds(self, *, compute_s: Values, token_s: Values) -> Values:
        """Time of one attention layer on one chip, seconds.

        Parameters
        ----------
        compute_s
            Speed-of-light time of ``4 * pairs * heads * head_dim`` flop, seconds.
        token_s
            Speed-of-light time of moving queries, outputs, keys and values once, seconds.

        Examples
        --------
        5 + 10/0.5 + 4 * 1 = 29 us:

        >>> law = PrefillAttentionLaw(floor_s=5e-6, compute_efficiency=0.5, token_slowdown=4.0)
        >>> round(law.seconds(compute_s=10e-6, token_s=1e-6), 9)
        2.9e-05
        """
        return self.floor_s + compute_s / self.compute_efficiency + self.token_slowdown * token_s


class CollectiveLine(StrictModel):
    """One algorithm of a collective: a start-up time and a rate."""

    start_s: Positive
    seconds_per_byte: Positive


class CollectiveLaw(StrictModel):
    """Time of a collective: the library picks the fastest of a few algorithms for each size.

    One-shot, two-shot and ring algorithms each cost a start-up time plus a time per byte; the
    lower envelope of such lines rises with size and never jumps.
    """

    lines: Annotated[tuple[CollectiveLine, ...], Field(min_length=1)]

    def seconds(self, payload_bytes: Values) -> Values:
        """Time of one call, seconds; 0 bytes still cost the start-up time.

        Parameters
        ----------
        payload_bytes
            Size by the convention of nccl-tests: the buffer of a rank for all-reduce, the full
            buffer for all-gather and reduce-scatter, what one rank sends for all-to-all.

        Examples
        --------
        1 kB goes by the first line, 1 MB by the second (2 + 10 against 5 + 1 us):

        >>> law = CollectiveLaw(lines=(CollectiveLine(start_s=2e-6, seconds_per_byte=1e-11),
        ...                            CollectiveLine(start_s=5e-6, seconds_per_byte=1e-12)))
        >>> [round(float(law.seconds(size)), 9) for size in (1e3, 1e6)]
        [2.01e-06, 6e-06]
        """
        times = [line.start_s + payload_bytes * line.seconds_per_byte for line in self.lines]
        fastest = times[0]
        for time in times[1:]:
            fastest = np.minimum(fastest, time)
        return fastest


class PowerLaw(StrictModel):
    """Power of one chip from how busy its arithmetic and its memory are."""

    active_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Power while a kernel runs that does next to nothing, as a fraction of the board limit."""
    compute_weight: NotNegative
    memory_weight: NotNegative

    def watts(
        self,
        *,
        tdp_w: float,
        idle_w: float,
        busy: Values,
        compute_utilization: Values,
        memory_utilization: Values,
    ) -> Values:
        """Mean power of a chip, watts; never above its board limit.

        Parameters
        ----------
        tdp_w, idle_w
            Board power limit, and power with nothing to do, watts: datasheet figures.
        busy
            Fraction of the time in which a kernel runs.
        compute_utilization, memory_utilization
            Speed-of-light time of the work over the whole time, all kernels together.

        Examples
        --------
        Half the time idle at 70 W, half at 0.2 of 700 W, and 0.6 of 700 W for half the flop:

        >>> law = PowerLaw(active_fraction=0.2, compute_weight=0.6, memory_weight=0.5)
        >>> watts = law.watts(tdp_w=700.0, idle_w=70.0, busy=0.5, compute_utilization=0.5,
        ...                   memory_utilization=0.0)
        >>> round(float(watts), 6)
        315.0
        """
        load = (
            self.active_fraction * busy
            + self.compute_weight * compute_utilization
            + self.memory_weight * memory_utilization
        )
        power_w: Values = np.minimum(idle_w * (1.0 - busy) + tdp_w * load, tdp_w)
        return power_w


class Fit(StrictModel):
    """How a law was fitted and how well it holds on the rows it was fitted to."""

    rows: Annotated[int, Field(ge=1)]
    median_ape: NotNegative
    """Median of |forecast - measured| / measured over the rows."""
    p90_ape: NotNegative
    bias: float
    """Mean of forecast / measured - 1; negative: the law is too fast."""
    ranges: Mapping[str, tuple[float, float]]
    """Smallest and largest value of each key column among the rows; outside is extrapolation."""
    source: str
    """Data file, framework and version."""
    note: str | None = None
    """What was left out and why, and what else a reader must know."""


class GemmKernel(StrictModel):
    """The dense products of one engine in one format."""

    compute_dtype: Dtype
    """Whose datasheet peak the law counts from."""
    weight_dtype: Dtype
    activation_dtype: Dtype
    """What the activations are turned to before the product; bf16: they are not converted."""
    law: GemmLaw
    fit: Fit


class GroupedGemmKernel(StrictModel):
    """The expert layers of one engine in one format: routing, both products, activation."""

    compute_dtype: Dtype
    weight_dtype: Dtype
    activation_dtype: Dtype
    law: GroupedGemmLaw
    fit: Fit
    skew_slowdown: Mapping[str, float] = {}
    """Median time of a skewed router over the balanced one at 1,024 tokens and more, by measured
    load distribution. A law is of a balanced router; nothing multiplies this in for you."""


class DecodeAttentionKernel(StrictModel):
    """Decode attention of one engine with one KV cache dtype and one head size."""

    kv_dtype: Dtype
    head_dim: int
    windowed: bool = False
    """Whether the law is of a sliding window (measured: 128 tokens)."""
    compute_dtype: Dtype
    """Whose datasheet peak the law counts from."""
    law: DecodeAttentionLaw
    fit: Fit


class MlaDecodeKernel(StrictModel):
    """Decode of multi-head latent attention, projections absorbed into the query."""

    compute_dtype: Dtype
    head_tile: Annotated[int, Field(ge=1)] | None = None
    """Query heads that the law counts together, padded to whole tiles; none: all of them are one
    tile, as many as there are."""
    law: DecodeAttentionLaw
    fit: Fit

    def tiles(self, heads: int) -> int:
        """Tiles of query heads of one sequence.

        Parameters
        ----------
        heads
            Query heads on the chip.
        """
        return 1 if self.head_tile is None else math.ceil(heads / self.head_tile)

    def padding(self, heads: int) -> float:
        """Heads of whole tiles over those that there are: at least 1."""
        return 1.0 if self.head_tile is None else self.tiles(heads) * self.head_tile / heads


class PrefillAttentionKernel(StrictModel):
    """Prefill attention of one engine with one pair of dtypes and one head size."""

    attention_dtype: Dtype
    """What the engine was asked for."""
    kv_dtype: Dtype
    head_dim: int
    windowed: bool = False
    """Whether the law is of a sliding window (measured: 128 tokens)."""
    masked: bool = False
    """Whether the kernel computes all pairs of a window's queries and keys, and masks them: the
    law then counts the whole triangle."""
    compute_dtype: Dtype
    """Whose datasheet peak the law counts from (an fp8 cache makes some kernels compute in fp8)."""
    law: PrefillAttentionLaw
    fit: Fit


class MlaPrefillKernel(StrictModel):
    """Prefill of multi-head latent attention, keys and values expanded per head."""

    compute_dtype: Dtype
    law: PrefillAttentionLaw
    fit: Fit


class EngineKernels(StrictModel):
    """All measured kernels of one engine on one accelerator."""

    gemm: Mapping[GemmFormat, GemmKernel] = {}
    grouped_gemm: Mapping[GemmFormat, GroupedGemmKernel] = {}
    decode_attention: tuple[DecodeAttentionKernel, ...] = ()
    prefill_attention: tuple[PrefillAttentionKernel, ...] = ()
    mla_decode: Mapping[Dtype, MlaDecodeKernel] = {}
    """By KV cache dtype."""
    mla_prefill: Mapping[Dtype, MlaPrefillKernel] = {}


class Collective(StrictModel):
    """One collective of one library over one number of chips of a scale-up domain."""

    law: CollectiveLaw
    fit: Fit | None = None
    """Absent where the law was not measured."""
    extrapolated: str | None = None
    """The rule that made this law, where it was not measured."""
    message_bytes: NotNegative = 0.0
    """What handling one message of an exchange costs, in bytes that it adds to the payload."""


class PowerFit(StrictModel):
    """The power law of an accelerator and where it comes from."""

    law: PowerLaw
    fit: Fit
    inherited_from: str | None = None
    """The chip that was measured, where it is not this one."""


class Calibration(StrictModel):
    """What was measured of one accelerator: one file of ``hardware/calibrations``."""

    accelerator: str
    """Id of the file in ``hardware/accelerators`` whose peaks the laws count from."""
    about: str
    date: str
    """Day on which the data were collected."""
    method: str
    peak_flop_per_s: Mapping[Dtype, float]
    """The peaks used in the fit; a catalogue with other peaks needs a new fit."""
    bandwidth_bytes_per_s: Positive
    kernels: Mapping[Engine, EngineKernels]
    preference: Mapping[Engine, tuple[Engine, ...]]
    """Whose kernels stand in, in this order, where an engine's own were not measured."""
    same_die_as: str | None = None
    """Accelerator with the same multiprocessors, whose kernels of an engine say more of this chip
    than its own kernels of another engine do."""
    collectives: Mapping[Operation, Mapping[str, Mapping[ChipCount, Collective]]] = {}
    """By operation, library, and chips in the group."""
    expert_exchange: Mapping[Exchange, Mapping[str, Mapping[ChipCount, Collective]]] = {}
    """All-to-all of expert parallelism, by half, library, and chips in the group."""
    power: PowerFit
    excluded: Mapping[str, str] = {}
    """Measured kernels that got no law, and why."""
