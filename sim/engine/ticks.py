"""Step times in whole ticks: what the engine asks the cost model, compiled to integers.

A pace answers with a line: step ``i`` of a stretch, from 1, takes ``start + i * growth`` ticks. It
also says for how many steps the line holds, where that is not all of the stretch: until the host
is overtaken by the chip, another rank becomes the slowest, or the experts have another load. The
replica ends the stretch there, so that jumps and single steps still agree tick by tick.
"""

from collections.abc import Sequence
from copy import copy
from typing import Protocol, Self

import numpy as np

from sim.cost.shares import Counts
from sim.cost.table import Array, StepTable
from sim.engine.clock import TICKS_PER_S, to_ticks
from sim.engine.stretch import Stretch
from sim.errors import InputError, InternalError
from sim.routing import LOAD_UNIT, Imbalance

KEPT = 1 << 16
"""Batches whose padded sizes are kept, before all are forgotten and looked up anew."""

Line = tuple[int, int, int | None]
"""Start and growth in ticks, and for how many steps they hold; none: for all."""


class Pace(Protocol):
    """What a replica needs to know about time."""

    def line(self, stretch: Stretch, steps_before: int = 0, /) -> Line:
        """Ticks of the steps of a stretch.

        Parameters
        ----------
        stretch : Stretch
        steps_before : int
            Steps that the replica has taken before the stretch, ever.
        """
        ...


class SteadyPace(Pace, Protocol):
    """A pace that knows what its experts take."""

    def expert_ticks(self, stretch: Stretch) -> int:
        """Ticks of one `LOAD_UNIT`th of the load of the fullest expert rank."""
        ...


def pace(table: StepTable, imbalance: Imbalance | None = None, grain: int = 1) -> Pace:
    """Compile the pace of a replica from the seconds of its steps.

    Parameters
    ----------
    table : StepTable
        In seconds.
    imbalance : Imbalance, optional
        How the load of the fullest expert rank varies; none: it does not.
    grain : int
        Into how many parts a token is divided in the contexts of stretches.
    """
    return varied(steady_pace(table, grain), table, imbalance)


def steady_pace(table: StepTable, grain: int = 1) -> SteadyPace:
    """Compile the pace of a replica whose experts always have the load that is expected.

    Parameters
    ----------
    table : StepTable
        In seconds.
    grain : int
        Into how many parts a token is divided in the contexts of stretches.
    """
    if is_simple(table):
        return TickTable(table, grain)
    return ComposedPace(table, grain) if table.shares.whole else DealtPace(table, grain)


def varied(steady: SteadyPace, table: StepTable, imbalance: Imbalance | None) -> Pace:
    """Let the load of the experts vary, and wait for the host where it may be the slower one.

    Parameters
    ----------
    steady : SteadyPace
        Compiled from the table; replicas may share it.
    table : StepTable
        In seconds.
    imbalance : Imbalance, optional
    """
    found: Pace = steady if imbalance is None else ImbalancedPace(steady, imbalance)
    if table.launch:
        found = LaunchedPace(found, table)
    if table.host_overlapped and (table.host_step or table.host_sequence):
        found = OverlappedPace(found, Host(table))
    return found


class TickTable:
    """The seconds of a `StepTable`, rounded once to whole ticks, where all chips see all tokens.

    Padding and the host's time are inside the tables, so that a line takes few look-ups.

    Parameters
    ----------
    table : StepTable
        In seconds; without stages, attention ranks and context ranks, drafts, and static shapes.
    grain : int
        Into how many parts a token is divided in the contexts of stretches.
    """

    def __init__(self, table: StepTable, grain: int = 1) -> None:
        if not is_simple(table):
            raise InternalError("this table needs the pace that sim.engine.ticks.pace chooses")
        part, host = _Part(table, grain), Host(table)
        self._part = part
        self._tokens = part.tokens_with_prompts()
        self._sequences = [
            ticks + host.serial_ticks(sequences) for sequences, ticks in enumerate(part.sequences)
        ]
        self._decode, self._prefill = part.decode, part.prefill
        self._context, self._window = part.context, part.window
        self._pair, self._window_pair = part.pair, part.window_pair
        self._alone = [
            part.alone(sequences) + (host.serial_ticks(sequences) if sequences else 0)
            for sequences in range(part.most_sequences + 1)
        ]
        """Ticks of a step without prompts and contexts, by the sequences that decode in it."""

    def line(self, stretch: Stretch, _steps_before: int = 0, /) -> Line:
        """Ticks of the steps of a stretch: a constant, and what the growing contexts add."""
        decoding, tokens = stretch.decode_sequences, stretch.prefill_tokens
        context, window = self._context[decoding], self._window[decoding]
        start = context * stretch.context_tokens + window * stretch.window_tokens
        growth = context * stretch.context_growing + window * stretch.window_growing
        if not tokens:
            return start + self._alone[decoding], growth, None
        prompts = len(stretch.chunks)
        start += (
            self._tokens[decoding + tokens]
            + self._sequences[decoding + prompts]
            + self._decode[decoding]
            + self._prefill[tokens]
            + self._pair * stretch.prefill_pairs
            + self._window_pair * stretch.prefill_window_pairs
        )
        if stretch.prefill_context_tokens:
            start += self._part.prefix(stretch.prefill_context_tokens, tokens, prompts)
        return start, growth, None

    def expert_ticks(self, stretch: Stretch) -> int:
        """Ticks of one `LOAD_UNIT`th of the load of the fullest expert rank."""
        return self._part.expert_ticks(stretch)


class ComposedPace:
    """Like `TickTable`, with the passes of a drafter and with compiled shapes.

    Parameters
    ----------
    table : StepTable
        In seconds; without stages, attention ranks and context ranks.
    grain : int
        Into how many parts a token is divided in the contexts of stretches.
    """

    def __init__(self, table: StepTable, grain: int = 1) -> None:
        self._parts = parts = [_Part(each, grain) for each in (table, *table.drafts)]
        self._host = host = Host(table)
        sizes = range(min(part.most_sequences for part in parts) + 1)
        self._alone = [
            sum(part.alone(size) for part in parts) + (host.serial_ticks(size) if size else 0)
            for size in sizes
        ]
        self._context = [sum(part.context_slope(size) for part in parts) for size in sizes]
        self._window = [sum(part.window_slope(size) for part in parts) for size in sizes]

    def line(self, stretch: Stretch, _steps_before: int = 0, /) -> Line:
        """Ticks of the steps of a stretch: a constant, and what the growing contexts add."""
        if stretch.prefill_tokens:
            return self._with_prompts(stretch)
        decoding = stretch.decode_sequences
        context, window = self._context[decoding], self._window[decoding]
        return (
            self._alone[decoding]
            + context * stretch.context_tokens
            + window * stretch.window_tokens,
            context * stretch.context_growing + window * stretch.window_growing,
            None,
        )

    def expert_ticks(self, stretch: Stretch) -> int:
        """Ticks of one `LOAD_UNIT`th of the load of the fullest expert rank."""
        return self._parts[0].expert_ticks(stretch)

    def _with_prompts(self, stretch: Stretch) -> Line:
        start, growth = self._host.serial_ticks(stretch.decode_sequences + len(stretch.chunks)), 0
        for part in self._parts:
            part_start, part_growth = part.rank_line(stretch)
            start, growth = start + part_start, growth + part_growth
        return start, growth, None


def is_simple(table: StepTable) -> bool:
    """Tell whether a `TickTable` suffices for a table."""
    shares = table.shares
    return shares.whole and shares.queries == 1 and not table.drafts and not table.padding.static


class DealtPace:
    """The seconds of a `StepTable` in whole ticks, where the chips share the batch.

    Slopes are those of the slowest chip. A slope depends on the counts of the batch alone, which a
    stretch does not change, and is a whole number of ticks, so that jumps and single steps agree.

    Parameters
    ----------
    table : StepTable
        In seconds.
    grain : int
        Into how many parts a token is divided in the contexts of stretches.
    """

    def __init__(self, table: StepTable, grain: int = 1) -> None:
        self._parts = [_Part(each, grain) for each in (table, *table.drafts)]
        self._host = Host(table)
        self._decoding: dict[int, tuple[int, int, int]] = {}
        """Of steps without prompts: ticks without contexts, of each key, and in the window."""

    def line(self, stretch: Stretch, _steps_before: int = 0, /) -> Line:
        """Ticks of the steps of a stretch: a constant, and what the growing contexts add."""
        if stretch.prefill_tokens:
            return self._dealt(stretch)
        decoding = stretch.decode_sequences
        if decoding not in self._decoding:
            alone, context, _ = self._dealt(Stretch(decoding, 0, 1, 0, 0, 0))
            _, window, _ = self._dealt(Stretch(decoding, 0, 0, 0, 1, 0))
            self._decoding[decoding] = alone, context, window
        alone, context, window = self._decoding[decoding]
        return (
            alone + context * stretch.context_tokens + window * stretch.window_tokens,
            context * stretch.context_growing + window * stretch.window_growing,
            None,
        )

    def _dealt(self, stretch: Stretch) -> Line:
        start = self._host.serial_ticks(stretch.decode_sequences + len(stretch.chunks))
        growth = 0
        for part in self._parts:
            part_start, part_growth = part.dealt_line(stretch)
            start, growth = start + part_start, growth + part_growth
        return start, growth, None

    def expert_ticks(self, stretch: Stretch) -> int:
        """Ticks of one `LOAD_UNIT`th of the load of the fullest expert rank."""
        part = self._parts[0]
        dealt = part.dealt(stretch)
        tokens, _, _ = part.sizes(dealt.decode, dealt.prefill)
        together = part.shares.parallelism.attention_dp == 1
        load: int = dealt.runs * part.load[tokens if together else part.group_count(dealt)]
        return load


class ImbalancedPace:
    """A pace whose fullest expert rank has another load in every period.

    Parameters
    ----------
    steady : Pace
        Of a step table, so that it knows what its experts take.
    imbalance : Imbalance
    """

    def __init__(self, steady: SteadyPace, imbalance: Imbalance) -> None:
        self._steady = steady
        self._imbalance = imbalance

    def line(self, stretch: Stretch, steps_before: int = 0, /) -> Line:
        """Ticks of the steps of a stretch until the period ends."""
        start, growth, _ = self._steady.line(stretch)
        excess, holds = _excess(self._imbalance, steps_before)
        return start + self._steady.expert_ticks(stretch) * excess, growth, holds


class LaunchedPace:
    """A pace whose steps with prompts are launched kernel by kernel, which takes its time.

    Parameters
    ----------
    device : Pace
    table : StepTable
        In seconds.
    """

    def __init__(self, device: Pace, table: StepTable) -> None:
        self._device = device
        self._launch, self._host = to_ticks(table.launch), Host(table)
        self._shares = table.shares

    def line(self, stretch: Stretch, steps_before: int = 0, /) -> Line:
        """Ticks of the steps of a stretch; one with prompts is a single step."""
        line = self._device.line(stretch, steps_before)
        if not stretch.prefill_tokens:
            return line
        prompts, runs = len(stretch.chunks), 1
        if not self._shares.whole:
            dealt = self._shares.counts(stretch.decode_sequences, prompts, stretch.prefill_tokens)
            runs = int(dealt.runs)
        serial = self._host.serial_ticks(stretch.decode_sequences + prompts)
        return slower(line, runs * self._launch + serial)


class OverlappedPace:
    """The slower of the chip and its host, which work side by side.

    Parameters
    ----------
    device : Pace
    host : Host
    """

    def __init__(self, device: Pace, host: "Host") -> None:
        self._device = device
        self._host = host

    def line(self, stretch: Stretch, steps_before: int = 0, /) -> Line:
        """Ticks of the steps of a stretch, until the chip overtakes the host."""
        line = self._device.line(stretch, steps_before)
        return slower(line, self._host.ticks(stretch.decode_sequences + len(stretch.chunks)))


class LockstepPace:
    """Attention ranks with batches of their own that take every step together.

    A step lasts as long as on the slowest rank, and then what the experts do with the tokens of
    all. Ranks without sequences take part.

    Parameters
    ----------
    table : StepTable
        In seconds, of a replica with attention ranks and neither stages nor context ranks.
    imbalance : Imbalance, optional
        How the load of the fullest expert rank varies; none: it does not.
    pad_to_fullest : bool
        Whether every rank fills up to the tokens of the fullest one, as vLLM and SGLang do to
        gather or exchange pieces of one size.
    grain : int
        Into how many parts a token is divided in the contexts of stretches.
    """

    def __init__(
        self,
        table: StepTable,
        imbalance: Imbalance | None = None,
        *,
        pad_to_fullest: bool = True,
        grain: int = 1,
    ) -> None:
        split = table.shares.parallelism
        if split.pp > 1 or split.cp > 1:
            raise InputError(
                f"attention ranks in lockstep have pp = {split.pp} and cp = {split.cp}: "
                "set both to 1"
            )
        self._parts = [_Part(each, grain) for each in (table, *table.drafts)]
        self._host = Host(table)
        self._launch = to_ticks(table.launch)
        self._overlapped = table.host_overlapped
        self._pad = pad_to_fullest
        self.imbalance = imbalance

    def varied(self, imbalance: Imbalance) -> Self:
        """Give the same ranks with experts whose load varies so; what is compiled is shared."""
        other = copy(self)
        other.imbalance = imbalance
        return other

    def line(self, stretches: Sequence[Stretch], steps_before: int = 0, /) -> Line:
        """Ticks of the steps of all ranks, until another rank becomes the slowest.

        Parameters
        ----------
        stretches : sequence of Stretch
            Of each rank; at least one has something to do.
        steps_before : int
            Steps that the ranks have taken before, ever.
        """
        group, period_steps = 0, None
        lines = [(0, 0)] * len(stretches)
        for part in self._parts:
            widths = [part.width(stretch) for stretch in stretches]
            if self._pad:
                widths = [max(widths)] * len(widths)
            group += part.group_tokens[sum(widths)]
            if self.imbalance is not None and part is self._parts[0]:
                excess, period_steps = _excess(self.imbalance, steps_before)
                group += part.load[sum(widths)] * excess
            for rank, (stretch, width) in enumerate(zip(stretches, widths, strict=True)):
                start, growth = part.rank_line(stretch, width)
                lines[rank] = (lines[rank][0] + start, lines[rank][1] + growth)
        start, growth, holds = slowest(lines)
        if period_steps is not None:
            holds = period_steps if holds is None else min(holds, period_steps)
        line = start + group, growth, holds
        if self._launch and any(each.prefill_tokens for each in stretches):
            line = slower(line, self._launch)
        fullest = max(each.decode_sequences + len(each.chunks) for each in stretches)
        if self._overlapped:
            return slower(line, self._host.rank_ticks(fullest))
        start, growth, holds = line
        return start + self._host.rank_ticks(fullest), growth, holds


def _excess(imbalance: Imbalance, steps_before: int) -> tuple[int, int]:
    """Load beyond the expected one, in `LOAD_UNIT`ths, and the steps for which it lasts."""
    period, into = divmod(steps_before, imbalance.period_steps)
    return imbalance.sample(period) - LOAD_UNIT, imbalance.period_steps - into


def slowest(lines: Sequence[tuple[int, int]]) -> Line:
    """Give the upper envelope of some lines from step 1 on, as long as it is one line.

    >>> slowest([(10, 1), (4, 3)])  # 11, 12, 13; then 4 + 4 * 3 = 16 is more than 14
    (10, 1, 3)
    """
    start, growth = max(lines, key=lambda line: (line[0] + line[1], line[1]))
    holds = [(start - other) // (faster - growth) for other, faster in lines if faster > growth]
    return start, growth, min(holds, default=None)


def slower(line: Line, constant: int) -> Line:
    """Give the larger of a rising line and a constant, as long as it is one of the two.

    >>> slower((10, 4, None), 20)  # 14 and 18 are less; 22 is more
    (20, 0, 2)
    >>> slower((20, 4, None), 20)
    (20, 4, None)
    """
    start, growth, holds = line
    if start + growth >= constant:
        return line
    if not growth:
        return constant, 0, holds
    below = (constant - start - 1) // growth
    return constant, 0, below if holds is None else min(below, holds)


class Host:
    """Time of the host for a step, in ticks."""

    def __init__(self, table: StepTable) -> None:
        self._step = to_ticks(table.host_step)
        self._sequence = to_ticks(table.host_sequence)
        self._ranks = table.shares.parallelism.attention_dp
        self._overlapped = table.host_overlapped

    def rank_ticks(self, sequences: int) -> int:
        """Time for so many sequences of the fullest attention rank."""
        return self._step + self._sequence * sequences

    def ticks(self, sequences: int) -> int:
        """Time for so many sequences of the replica."""
        return self.rank_ticks(-(-sequences // self._ranks))

    def serial_ticks(self, sequences: int) -> int:
        """Time that the chip waits for."""
        return 0 if self._overlapped else self.ticks(sequences)


class _Part:
    """One table in ticks: of the model, or of some passes of its drafter."""

    def __init__(self, table: StepTable, grain: int) -> None:
        self.shares = table.shares
        self.most_sequences = table.max_num_seqs or len(table.by_decode) - 1
        self.group_tokens = _ticks(table.by_group_tokens)
        self.load = _ticks(table.by_load / LOAD_UNIT)
        self._table = table
        self._padding = table.padding
        self._sees_prompts = table.sees_prompts
        self.tokens = _ticks(table.by_tokens)
        self.sequences = _ticks(table.by_sequences)
        self.decode = _ticks(table.by_decode)
        self.prefill = _ticks(table.by_prefill)
        self.context = _ticks(table.per_context / grain)
        self.window = _ticks(table.per_window_context / grain)
        self.pair = to_ticks(table.per_pair)
        self.window_pair = to_ticks(table.per_window_pair)
        self._eager = to_ticks(table.eager)
        self._terms: dict[tuple[int, int, int, int | None], tuple[int, int, int]] = {}
        self._sizes: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._prefix: list[float] = (table.per_prefix * TICKS_PER_S).tolist()

    def sizes(self, decode: int, prefill: int) -> tuple[int, int, int]:
        """Tokens of a step, decoding sequences and prompt tokens, padding included where paid."""
        found = self._sizes.get((decode, prefill))
        if found is None:
            if len(self._sizes) >= KEPT:
                self._sizes.clear()
            found = self._sizes[decode, prefill] = self._padded(decode, prefill)
        return found

    def _padded(self, decode: int, prefill: int) -> tuple[int, int, int]:
        drafted = self.shares.queries * decode
        if not self._padding.active:
            return drafted + prefill, decode, prefill
        filling = self._padding.filling(drafted, prefill)
        if not self._padding.static:
            return drafted + prefill + filling, decode, prefill
        if prefill:
            return drafted + prefill + filling, decode, prefill + filling
        decode += -(-filling // self.shares.queries)
        return decode * self.shares.queries, decode, 0

    def tokens_with_prompts(self) -> list[int]:
        """Ticks by the tokens of a step with prompts, its padding and launch included."""
        counts = np.arange(len(self.tokens))
        padded = np.minimum(counts + self._padding.filling(0, counts), max(counts.size - 1, 0))
        launches = self._eager * self._padding.eager(0, counts) if self._eager else 0
        found: list[int] = (np.asarray(self.tokens)[padded] + launches).tolist()
        return found

    def expert_ticks(self, stretch: Stretch) -> int:
        """Ticks of one `LOAD_UNIT`th of the load of the fullest expert rank."""
        tokens, _, _ = self.sizes(stretch.decode_sequences, stretch.prefill_tokens)
        return self.load[tokens]

    def width(self, stretch: Stretch) -> int:
        """Tokens of a rank in lockstep, its own padding included."""
        prefill = stretch.prefill_tokens if self._sees_prompts else 0
        return self.sizes(stretch.decode_sequences, prefill)[0]

    def alone(self, decode: int) -> int:
        """Ticks of a step without prompts and contexts."""
        tokens, padded, _ = self.sizes(decode, 0)
        ticks = self.tokens[tokens] + self.sequences[self.shares.queries * padded]
        return ticks + self.decode[padded] + self._launch(decode, 0)

    def context_slope(self, decode: int) -> int:
        """Ticks of each key of the whole contexts of a decode step."""
        return self._slope(self.context, decode, 0)

    def window_slope(self, decode: int) -> int:
        """Ticks of each key inside the window."""
        return self._slope(self.window, decode, 0)

    def rank_line(self, stretch: Stretch, width: int | None = None) -> tuple[int, int]:
        """Ticks of a rank that has a batch of its own, without what all ranks do together.

        Parameters
        ----------
        stretch : Stretch
        width : int, optional
            Tokens that it is padded to; by its own sizes unless given.
        """
        prefill = stretch.prefill_tokens if self._sees_prompts else 0
        place = stretch.decode_sequences, prefill, len(stretch.chunks) if prefill else 0, width
        terms = self._terms.get(place)
        if terms is None:
            if len(self._terms) >= KEPT:
                self._terms.clear()
            terms = self._terms[place] = self._rank_terms(*place)
        start, context, window = terms
        start += context * stretch.context_tokens + window * stretch.window_tokens
        if prefill:
            longer = self.sizes(stretch.decode_sequences, prefill)[2]
            start += self._prompts(stretch, longer, len(stretch.chunks))
        return start, context * stretch.context_growing + window * stretch.window_growing

    def _rank_terms(
        self, decoding: int, prefill: int, prompts: int, width: int | None
    ) -> tuple[int, int, int]:
        """Ticks of a rank without attention, and of each key of its contexts and windows."""
        tokens, decode, _ = self.sizes(decoding, prefill)
        start = self.tokens[tokens if width is None else width] + self.decode[decode]
        start += self.sequences[self.shares.queries * decode + prompts]
        start += self._launch(decoding, prefill)
        context = self._slope(self.context, decoding, prefill)
        return start, context, self._slope(self.window, decoding, prefill)

    def dealt(self, stretch: Stretch) -> Counts:
        """Deal a batch out to the slowest chip."""
        if not self._sees_prompts:
            return self.shares.counts(stretch.decode_sequences, 0, 0)
        return self.shares.counts(
            stretch.decode_sequences, len(stretch.chunks), stretch.prefill_tokens
        )

    def group_count(self, dealt: Counts) -> int:
        """Tokens of all attention ranks as the experts see them."""
        if not self._padding.active:
            tokens: int = dealt.group_tokens
            return tokens
        return int(self._table.group_tokens(dealt))

    def dealt_line(self, stretch: Stretch) -> tuple[int, int]:
        """Ticks of a replica whose chips share the batch, bubbles included."""
        dealt = self.dealt(stretch)
        runs, tokens = dealt.runs, stretch.prefill_tokens
        width, decode, longer = self.sizes(dealt.decode, dealt.prefill)
        wider = 1 if decode == dealt.decode else decode / dealt.decode
        context = round(runs * self.context[decode] * dealt.context_share * wider)
        window = round(runs * self.window[decode] * dealt.window_share * wider)
        stage = (
            self.tokens[width]
            + self.group_tokens[self.group_count(dealt)]
            + self.decode[decode]
            + self.prefill[longer]
            + self._launch(dealt.decode, dealt.prefill)
        )
        rows = self.shares.queries * decode + dealt.prompts
        start = runs * stage + dealt.heads * self.sequences[rows]
        start += context * stretch.context_tokens + window * stretch.window_tokens
        if tokens and self._sees_prompts:
            start += self._dealt_prompts(stretch, dealt, longer)
        return start, context * stretch.context_growing + window * stretch.window_growing

    def _launch(self, decode: int, prefill: int) -> int:
        """Ticks that a step takes longer without a graph."""
        if not self._eager:
            return 0
        return self._eager * int(self._padding.eager(self.shares.queries * decode, prefill))

    def _slope(self, slopes: list[int], decode: int, prefill: int) -> int:
        """Ticks of each key: of padded sequences too, where they have contexts."""
        _, padded, _ = self.sizes(decode, prefill)
        if padded == decode or not decode:
            return slopes[padded]
        return round(slopes[padded] * padded / decode)

    def _prompts(self, stretch: Stretch, longer: int, prompts: int) -> int:
        """Ticks of the attention of prompts, with all pairs of the stretch on one rank."""
        tokens, window_pairs = (
            stretch.prefill_tokens,
            self.window_pair * stretch.prefill_window_pairs,
        )
        ticks = self.prefill[longer] + self.pair * stretch.prefill_pairs + window_pairs
        if longer > tokens:
            behind = longer - tokens
            last = (stretch.prefill_context_tokens + tokens) / prompts
            ticks += round(self.pair * behind * (last + (behind / prompts + 1) / 2))
            ticks += round(window_pairs * behind / tokens)
        if stretch.prefill_context_tokens:
            ticks += self.prefix(stretch.prefill_context_tokens, longer, prompts)
        return ticks

    def _dealt_prompts(self, stretch: Stretch, dealt: Counts, longer: int) -> int:
        """Ticks of the pairs and prefixes of prompts that are shared by the chips."""
        runs, share = dealt.runs, dealt.pair_share
        pair, window_pair = (
            round(runs * self.pair * share),
            round(runs * self.window_pair * share),
        )
        ticks: int = pair * stretch.prefill_pairs + window_pair * stretch.prefill_window_pairs
        cached = stretch.prefill_context_tokens * share
        if longer > dealt.prefill:
            behind = longer - dealt.prefill
            last = (cached + dealt.prefill) / dealt.prompts
            ticks += round(runs * self.pair * behind * (last + (behind / dealt.prompts + 1) / 2))
            ticks += round(window_pair * stretch.prefill_window_pairs * behind / dealt.prefill)
        if cached:
            ticks += self.prefix(runs * cached, longer, dealt.prompts)
        return ticks

    def prefix(self, cached: float, tokens: int, prompts: int) -> int:
        """Ticks of the cached tokens before prompts that have so many tokens in the step."""
        return round(cached * self._prefix[max(tokens // prompts, 1)])


def _ticks(seconds: Array) -> list[int]:
    """Round durations to whole ticks, as `to_ticks` does."""
    ticks: list[int] = np.rint(seconds * TICKS_PER_S).astype(np.int64).tolist()
    return ticks


class ConstantPace:
    """Every step takes the same time, whatever is in it; makes queueing theory applicable.

    Parameters
    ----------
    step_ticks : int
    """

    def __init__(self, step_ticks: int) -> None:
        self.step_ticks = step_ticks

    @classmethod
    def of_seconds(cls, step_s: float) -> Self:
        """Build it from a step time in seconds."""
        return cls(to_ticks(step_s))

    def line(self, stretch: Stretch, steps_before: int = 0, /) -> Line:
        """Ticks of the steps of a stretch: the same for any batch."""
        del stretch, steps_before
        return self.step_ticks, 0, None
