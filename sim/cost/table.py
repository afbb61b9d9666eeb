"""The timer of a step compiled to look-up tables.

Each operator depends on one count of the batch and is affine in the attention sums, so a whole
step is a few look-ups: how many sequences and tokens the slowest chip has says where to look.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from sim.cost.execution import NO_PADDING, Padding, decoding, padded
from sim.cost.shares import Counts, Shares
from sim.cost.timer import OperatorTime, StepTimer
from sim.cost.work import Number, Rows, StepShape
from sim.errors import InternalError

Array = npt.NDArray[np.float64]

PROBE_TOKENS = 1e6
"""Context or pairs at which the slope of an affine attention term is read off."""

Quantity = Callable[[OperatorTime], Number]
"""What to tabulate of a priced operator."""

Extent = Literal["elapsed", "work"]
"""``elapsed``: of the slowest chip, from the start of a step to its end, bubbles of the pipeline
included; ``work``: what the mean chip does."""


def _nothing() -> Array:
    """Make a table of what costs nothing, or is never asked for."""
    return np.zeros(1)


@dataclass(frozen=True)
class StepTable:
    """A quantity of a step (seconds, joules, FLOP, bytes) compiled into look-up tables.

    With ``T, N, D, P`` tokens, rows of logits, decoding sequences and prompt tokens that one chip
    has in a micro-batch, ``G`` tokens of all attention ranks, ``c`` tokens per prompt, and ``C, Cw,
    Q, Qw, R`` its part of the attention sums (`Shares`):

    ``value = runs * (by_tokens[T] + by_group_tokens[G] + by_decode[D] + by_prefill[P]
    + per_context[D] * C + per_window_context[D] * Cw + per_pair * Q + per_window_pair * Qw
    + per_prefix[c] * R) + heads * by_sequences[N]``

    and beside it what the host adds to every step, and the passes of a drafter. ``T`` and ``G``
    have their padding and drafts inside.

    Exact for what is affine in the attention sums: seconds, FLOP, bytes. Energy is not where an
    operator meets the board's power limit: there the table may be up to 2 % low (prompts of vLLM
    on Hopper), well inside the error of the power law.
    """

    by_tokens: Array
    by_group_tokens: Array
    """Zero where every rank has all tokens of the group."""
    by_sequences: Array
    by_decode: Array
    per_context: Array
    per_window_context: Array
    by_prefill: Array
    per_pair: float
    per_window_pair: float
    shares: Shares
    extent: Extent = "elapsed"
    per_prefix: Array = field(default_factory=_nothing)
    """Of each cached token before a prompt, by the prompt's tokens in the step."""
    by_load: Array = field(default_factory=_nothing)
    """What one more unit of the load of the fullest expert rank adds, by the tokens that the
    experts see: ``G`` if there are several attention ranks, else ``T``."""
    padding: Padding = NO_PADDING
    eager: float = 0.0
    """Of each run of a stage that is larger than all graphs."""
    launch: float = 0.0
    """What a run of a stage with prompts takes at least, where they are launched kernel by kernel:
    `fixed` leaves it out."""
    host_step: float = 0.0
    """What the host adds to a step."""
    host_sequence: float = 0.0
    """What it adds for each sequence of an attention rank."""
    host_overlapped: bool = False
    """Whether those two run beside the chip: `fixed` then leaves them out."""
    max_num_seqs: int | None = None
    """Most sequences of one attention rank; none: as many as `by_decode` has room for."""
    drafts: tuple["StepTable", ...] = ()
    """The drafter's first pass, and all further ones together."""
    sees_prompts: bool = True
    """Whether it prices the prompts of a step too; further passes of a drafter do not."""

    @classmethod
    def compile(
        cls,
        timer: StepTimer,
        quantity: Quantity,
        overhead: Callable[[float], float],
        max_num_seqs: int,
        extent: Extent = "elapsed",
    ) -> Self:
        """Tabulate a quantity for all counts up to the limits.

        Parameters
        ----------
        timer : StepTimer
        quantity : callable
            What to tabulate of one priced operator.
        overhead : callable
            What one second of the engine's own time contributes.
        max_num_seqs : int
            Most sequences of one attention rank; ``timer.shares`` knows the most tokens.
        extent : str

        Raises
        ------
        InputError
            The engine may plan steps beyond the largest of strict buckets.
        """
        execution, shares = timer.execution, timer.shares
        execution.padding.check(shares.queries * max_num_seqs, shares.chunk_tokens)
        tabulate = _Tabulator(timer, shares, quantity, max_num_seqs, execution.padding)
        table = cls._of(tabulate, overhead, extent)
        return replace(
            table,
            by_load=tabulate.load(),
            eager=overhead(timer.eager_s),
            launch=overhead(timer.run_launch_s) if execution.eager_prompts else 0.0,
            host_step=overhead(execution.host.step_s),
            host_sequence=overhead(execution.host.sequence_s),
            host_overlapped=execution.host.overlapped,
            drafts=tuple(cls._drafts(tabulate, overhead, extent)),
        )

    @classmethod
    def _of(
        cls, tabulate: "_Tabulator", overhead: Callable[[float], float], extent: Extent
    ) -> Self:
        timer, queries = tabulate.timer, tabulate.shares.queries
        by_tokens = tabulate.rows("tokens")
        by_sequences = tabulate.rows("sequences")
        by_decode = tabulate.rows("decode_sequences")
        by_tokens[1:] += overhead(timer.stage_overhead_s)
        sequences = np.arange(by_sequences.size, dtype=float)
        by_sequences += overhead(timer.overhead.sequence_s) * sequences
        if queries > 1:  # rows of logits were counted, but the engine's work is per sequence
            drafts = (queries - 1) * np.arange(by_decode.size, dtype=float)
            by_decode -= overhead(timer.overhead.sequence_s) * drafts
        return cls(
            by_tokens=by_tokens,
            by_group_tokens=tabulate.group_tokens(),
            by_sequences=by_sequences,
            by_decode=by_decode,
            per_context=tabulate.decode_slope("decode_context_tokens"),
            per_window_context=tabulate.decode_slope("decode_window_tokens"),
            by_prefill=tabulate.rows("prefill_tokens"),
            per_pair=tabulate.prefill_slope("prefill_pairs"),
            per_window_pair=tabulate.prefill_slope("prefill_window_pairs"),
            shares=tabulate.shares,
            extent=extent,
            per_prefix=tabulate.prefix_slope(),
            padding=tabulate.padding,
            max_num_seqs=tabulate.max_num_seqs,
        )

    @classmethod
    def _drafts(
        cls, tabulate: "_Tabulator", overhead: Callable[[float], float], extent: Extent
    ) -> Iterator["StepTable"]:
        """Compile the passes of a drafter; its batches are not padded."""
        drafting = tabulate.timer.execution.speculation
        if drafting is None or drafting.drafter is None:
            return
        first, later = (
            replace(
                tabulate,
                timer=drafting.drafter,
                shares=replace(tabulate.shares, queries=queries),
                padding=NO_PADDING,
            )
            for queries in (drafting.first_queries, 1)
        )
        yield cls._of(first, overhead, extent)
        if drafting.draft_tokens > 1:
            yield cls._of(later, overhead, extent).repeated(drafting.draft_tokens - 1)

    def repeated(self, times: int) -> "StepTable":
        """Do what the decoding sequences cost several times, and leave prompts out."""
        return replace(
            self,
            by_tokens=self.by_tokens * times,
            by_group_tokens=self.by_group_tokens * times,
            by_sequences=self.by_sequences * times,
            by_decode=self.by_decode * times,
            per_context=self.per_context * times,
            per_window_context=self.per_window_context * times,
            sees_prompts=False,
        )

    def fixed(self, shape: StepShape) -> Array:
        """Part of the value that does not depend on contexts; fields are integer arrays.

        Time of the host counts if the chip waits for it.
        """
        if not self.sees_prompts:
            shape = decoding(shape)
        dealt = self._dealt(shape)
        runs, rank = dealt.runs, self._rank(shape, dealt)
        queries, padding = self.shares.queries, self.padding
        fixed: Array = (
            runs * _at(self.by_tokens, rank.tokens)
            + dealt.heads * _at(self.by_sequences, rank.sequences)
            + runs * _at(self.by_decode, rank.decode_sequences)
            + runs * _at(self.by_prefill, rank.prefill_tokens)
            + runs * _at(self.by_group_tokens, self.group_tokens(dealt))
        )
        if self.eager:
            fixed = fixed + runs * self.eager * padding.eager(queries * dealt.decode, dealt.prefill)
        if not self.host_overlapped:
            sequences = np.asarray(shape.decode_sequences) + np.asarray(shape.prefill_sequences)
            fullest = np.ceil(sequences / self.shares.parallelism.attention_dp)
            fixed = fixed + self.host_step + self.host_sequence * fullest
        for drafts in self.drafts:
            fixed = fixed + drafts.fixed(shape)
        return fixed

    def attended(self, shape: StepShape) -> Array:
        """Part of the value that is proportional to contexts, query-key pairs and prefixes."""
        if not self.sees_prompts:
            shape = decoding(shape)
        dealt = self._dealt(shape)
        part = self._rank(shape, dealt)
        attended: Array = dealt.runs * (
            _at(self.per_context, part.decode_sequences) * part.decode_context_tokens
            + _at(self.per_window_context, part.decode_sequences) * part.decode_window_tokens
            + self.per_pair * np.asarray(part.prefill_pairs, dtype=float)
            + self.per_window_pair * np.asarray(part.prefill_window_pairs, dtype=float)
        )
        if np.any(part.prefill_context_tokens):
            slope = _at(self.per_prefix, part.tokens_per_prompt)
            attended = attended + dealt.runs * slope * part.prefill_context_tokens
        for drafts in self.drafts:
            attended = attended + drafts.attended(shape)
        return attended

    def group_tokens(self, dealt: Counts) -> Any:
        """Count the tokens of all attention ranks as the experts see them.

        Where steps are padded every rank fills up to the size of the fullest one.
        """
        if not self.padding.active or self.shares.parallelism.attention_dp == 1:
            return dealt.group_tokens
        decode = self.shares.queries * dealt.decode
        tokens = decode + dealt.prefill + self.padding.filling(decode, dealt.prefill)
        eager = self.padding.eager(decode, dealt.prefill)
        return np.where(eager, dealt.group_tokens, self.shares.parallelism.attention_dp * tokens)

    def _rank(self, shape: StepShape, dealt: Counts) -> StepShape:
        """Give what a rank sees of its micro-batch, drafts and padding included."""
        rank = StepShape(
            decode_sequences=dealt.decode,
            decode_context_tokens=np.asarray(shape.decode_context_tokens) * dealt.context_share,
            decode_window_tokens=np.asarray(shape.decode_window_tokens) * dealt.window_share,
            prefill_sequences=dealt.prompts,
            prefill_tokens=dealt.prefill,
            prefill_pairs=np.asarray(shape.prefill_pairs) * dealt.pair_share,
            prefill_window_pairs=np.asarray(shape.prefill_window_pairs) * dealt.pair_share,
            prefill_context_tokens=np.asarray(shape.prefill_context_tokens) * dealt.pair_share,
            queries=self.shares.queries,
        )
        return padded(self.padding, rank)

    def _dealt(self, shape: StepShape) -> Counts:
        counts = (
            np.asarray(shape.decode_sequences),
            np.asarray(shape.prefill_sequences),
            np.asarray(shape.prefill_tokens),
        )
        if self.extent == "work" and not self.shares.whole:
            return self.shares.mean(*counts)
        return self.shares.counts(*counts)


def _at(table: Array, counts: Any) -> Array:
    """Look a count up; between two whole numbers the table is taken to be a straight line."""
    below = np.asarray(counts).astype(np.int64)
    rest = counts - below
    found: Array = table[below]
    if np.any(rest):
        found = found + rest * (table[np.minimum(below + 1, table.size - 1)] - found)
    return found


@dataclass(frozen=True)
class _Tabulator:
    """Evaluates one quantity of a timer over ranges of counts."""

    timer: StepTimer
    shares: Shares
    """Of the replica, not of the timer: a drafter has what the model deals out."""
    quantity: Quantity
    max_num_seqs: int
    padding: Padding

    def rows(self, rows: Rows) -> Array:
        """Sum over the operators sized by these rows, for 0 to the limit, contexts empty."""
        counts = np.arange(self._limit(rows) + 1, dtype=float)
        return self._sum(rows, self._shape(rows, counts), counts.size)

    def group_tokens(self) -> Array:
        """Sum over the operators that see all attention ranks."""
        if not self._apart:
            return np.zeros(self._limit("tokens") + 1)
        counts = self._group_counts()
        total = np.zeros(counts.size)
        for op in self.timer.operators:
            if op.scope == "group":
                total += self.quantity(self.timer.time_once(op, StepShape(prefill_tokens=counts)))
        return total

    def load(self) -> Array:
        """Growth with the load of the fullest expert rank, by the tokens that experts see."""
        counts = self._group_counts() if self._apart else np.arange(self._limit("tokens") + 1.0)
        total = np.zeros(counts.size)
        for op in self.timer.operators:
            total += self.timer.load_slope(op, StepShape(prefill_tokens=counts), self.quantity)
        return total

    def decode_slope(self, field: str) -> Array:
        """Increase per context token, by number of decoding sequences."""
        counts = np.arange(self._limit("decode_sequences") + 1, dtype=float)
        base = self._shape("decode_sequences", counts)
        probe = _probing(base, field, counts.size)
        at_probe = self._sum("decode_sequences", probe, counts.size)
        return (at_probe - self._sum("decode_sequences", base, counts.size)) / PROBE_TOKENS

    def prefill_slope(self, field: str) -> float:
        """Increase per query-key pair."""
        base = StepShape(prefill_tokens=np.ones(1))
        probe = _probing(base, field, 1)
        at_probe = self._sum("prefill_tokens", probe, 1)
        return float(at_probe[0] - self._sum("prefill_tokens", base, 1)[0]) / PROBE_TOKENS

    def prefix_slope(self) -> Array:
        """Increase per cached token before a prompt, by the prompt's tokens in the step."""
        counts = np.arange(self._limit("prefill_tokens") + 1, dtype=float)
        base = StepShape(prefill_sequences=1, prefill_tokens=counts)
        probe = base._replace(prefill_context_tokens=np.full(counts.size, PROBE_TOKENS))
        kinds: tuple[Rows, ...] = ("prefill_tokens", "prefix_tokens")
        slope = np.zeros(counts.size)
        for rows in kinds:
            slope += self._sum(rows, probe, counts.size) - self._sum(rows, base, counts.size)
        slope[0] = 0.0
        return slope / PROBE_TOKENS

    @property
    def _apart(self) -> bool:
        """Whether several attention ranks have batches of their own."""
        return self.shares.parallelism.attention_dp > 1

    def _group_counts(self) -> Array:
        ranks, queries = self.shares.parallelism.attention_dp, self.shares.queries
        most = self.shares.chunk_tokens
        if queries > 1 or self.padding.active:
            most = self._limit("tokens")
        # two more: decoding sequences and prompt tokens of micro-batches are rounded up
        return np.arange(ranks * most + 2 * queries + 1, dtype=float)

    def _limit(self, rows: Rows) -> int:
        """Most rows of one chip in one micro-batch."""
        tokens, seqs, queries = self.shares.chunk_tokens, self.max_num_seqs, self.shares.queries
        dealt = not self.shares.whole  # counts are then rounded up, each by itself
        most = tokens + (dealt or queries > 1) * queries * seqs
        decode, prefill = seqs, tokens
        if self.padding.active:
            most = max(most, _next(self.padding.prefill_sizes, most))
            most = max(most, _next(self.padding.decode_sizes, queries * seqs) + queries)
            if self.padding.static:
                decode = max(
                    decode, -(-_next(self.padding.decode_sizes, queries * seqs) // queries)
                )
                prefill = most
        limits: dict[Rows, int] = {
            "tokens": most,
            "sequences": queries * decode + 1 + (dealt or queries > 1) * seqs,
            "decode_sequences": decode,
            "prefill_tokens": prefill,
        }
        return limits[rows]

    def _shape(self, rows: Rows, counts: Array) -> StepShape:
        """Build a batch in which one kind of row is counted by ``counts``."""
        if rows == "decode_sequences":
            return StepShape(decode_sequences=counts, queries=self.shares.queries)
        if rows == "sequences":
            return StepShape(prefill_sequences=counts)
        return StepShape(prefill_tokens=counts)

    def _sum(self, rows: Rows, shape: StepShape, size: int) -> Array:
        total = np.zeros(size)
        for op in self.timer.operators:
            if (op.rows == "sequences") != (op.scope == "head"):
                raise InternalError(f"{op.name} is sized by {op.rows} in scope {op.scope}")
            if op.rows == rows and not (self._apart and op.scope == "group"):
                total += self.quantity(self.timer.time_once(op, shape))
        return total


def _probing(base: StepShape, field: str, size: int) -> StepShape:
    """Fill one attention sum of a batch."""
    changes: dict[str, Any] = {field: np.full(size, PROBE_TOKENS)}
    return base._replace(**changes)


def _next(sizes: tuple[int, ...], count: int) -> int:
    """Give the next size, or the largest."""
    return next((size for size in sizes if size >= count), sizes[-1] if sizes else 0)
