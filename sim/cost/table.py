"""The timer of a step compiled to look-up tables.

Each operator depends on one count of the batch and is affine in the attention sums, so a whole
step is a few look-ups: how many sequences and tokens the slowest chip has says where to look.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from sim.cost.shares import Counts, Shares
from sim.cost.timer import OperatorTime, StepTimer
from sim.cost.work import Number, Rows, StepShape
from sim.errors import InternalError

Array = npt.NDArray[np.float64]

PROBE_TOKENS = 1e6
"""Context or pairs at which the slope of an affine attention term is read off."""

Extent = Literal["elapsed", "work"]
"""``elapsed``: of the slowest chip, from the start of a step to its end, bubbles of the pipeline
included; ``work``: what the mean chip does."""


@dataclass(frozen=True)
class StepTable:
    """A quantity of a step (seconds, joules, FLOP, bytes) compiled into look-up tables.

    With ``T, N, D, P`` tokens, sequences, decoding sequences and prompt tokens that one chip has
    in a micro-batch, ``G`` tokens of all attention ranks, and ``C, Cw, Q, Qw`` its part of the
    attention sums (`Shares`):

    ``value = runs * (by_tokens[T] + by_group_tokens[G] + by_decode[D] + by_prefill[P]
    + per_context[D] * C + per_window_context[D] * Cw + per_pair * Q + per_window_pair * Qw)
    + heads * by_sequences[N]``

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

    @classmethod
    def compile(
        cls,
        timer: StepTimer,
        quantity: Callable[[OperatorTime], Number],
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
        """
        tabulate = _Tabulator(timer, quantity, max_num_seqs)
        by_tokens = tabulate.rows("tokens")
        by_sequences = tabulate.rows("sequences")
        by_tokens[1:] += overhead(timer.stage_overhead_s)
        sequences = np.arange(by_sequences.size, dtype=float)
        by_sequences += overhead(timer.overhead.sequence_s) * sequences
        return cls(
            by_tokens=by_tokens,
            by_group_tokens=tabulate.group_tokens(),
            by_sequences=by_sequences,
            by_decode=tabulate.rows("decode_sequences"),
            per_context=tabulate.decode_slope("decode_context_tokens"),
            per_window_context=tabulate.decode_slope("decode_window_tokens"),
            by_prefill=tabulate.rows("prefill_tokens"),
            per_pair=tabulate.prefill_slope("prefill_pairs"),
            per_window_pair=tabulate.prefill_slope("prefill_window_pairs"),
            shares=timer.shares,
            extent=extent,
        )

    def fixed(self, shape: StepShape) -> Array:
        """Part of the value that does not depend on contexts; fields are integer arrays."""
        dealt = self._dealt(shape)
        runs = dealt.runs
        fixed: Array = (
            runs * _at(self.by_tokens, dealt.decode + dealt.prefill)
            + dealt.heads * _at(self.by_sequences, dealt.decode + dealt.prompts)
            + runs * _at(self.by_decode, dealt.decode)
            + runs * _at(self.by_prefill, dealt.prefill)
            + runs * _at(self.by_group_tokens, dealt.group_tokens)
        )
        return fixed

    def attended(self, shape: StepShape) -> Array:
        """Part of the value that is proportional to contexts and query-key pairs."""
        dealt = self._dealt(shape)
        part = self.shares.rank(shape, dealt)
        attended: Array = dealt.runs * (
            _at(self.per_context, dealt.decode) * part.decode_context_tokens
            + _at(self.per_window_context, dealt.decode) * part.decode_window_tokens
            + self.per_pair * np.asarray(part.prefill_pairs, dtype=float)
            + self.per_window_pair * np.asarray(part.prefill_window_pairs, dtype=float)
        )
        return attended

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
    quantity: Callable[[OperatorTime], Number]
    max_num_seqs: int

    def rows(self, rows: Rows) -> Array:
        """Sum over the operators sized by these rows, for 0 to the limit, contexts empty."""
        counts = np.arange(self._limit(rows) + 1, dtype=float)
        return self._sum(rows, _shape_with(rows, counts), counts.size)

    def group_tokens(self) -> Array:
        """Sum over the operators that see all attention ranks."""
        shares = self.timer.shares
        ranks = shares.parallelism.attention_dp
        if ranks == 1:
            return np.zeros(self._limit("tokens") + 1)
        # two more: decoding sequences and prompt tokens of micro-batches are rounded up
        counts = np.arange(ranks * shares.chunk_tokens + 3, dtype=float)
        total = np.zeros(counts.size)
        for op in self.timer.operators:
            if op.scope == "group":
                total += self.quantity(self.timer.time_once(op, StepShape(prefill_tokens=counts)))
        return total

    def decode_slope(self, field: str) -> Array:
        """Increase per context token, by number of decoding sequences."""
        counts = np.arange(self._limit("decode_sequences") + 1, dtype=float)
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

    def _limit(self, rows: Rows) -> int:
        """Most rows of one chip in one micro-batch."""
        tokens, seqs = self.timer.shares.chunk_tokens, self.max_num_seqs
        dealt = not self.timer.shares.whole  # counts are then rounded up, each by itself
        limits: dict[Rows, int] = {
            "tokens": tokens + dealt * seqs,
            "sequences": seqs + 1 + dealt * seqs,
            "decode_sequences": seqs,
            "prefill_tokens": tokens,
        }
        return limits[rows]

    def _sum(self, rows: Rows, shape: StepShape, size: int) -> Array:
        total = np.zeros(size)
        together = self.timer.shares.parallelism.attention_dp == 1
        for op in self.timer.operators:
            if (op.rows == "sequences") != (op.scope == "head"):
                raise InternalError(f"{op.name} is sized by {op.rows} in scope {op.scope}")
            if op.rows == rows and (together or op.scope != "group"):
                total += self.quantity(self.timer.time_once(op, shape))
        return total


def _shape_with(rows: Rows, counts: Array) -> StepShape:
    """Build a batch in which one kind of row is counted by ``counts``."""
    if rows == "prefill_tokens":
        return StepShape(prefill_tokens=counts)
    return StepShape(decode_sequences=counts)
