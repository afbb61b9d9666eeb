"""From the sums over a replica's batch to what one chip of it sees, and how often.

A pipeline works on several micro-batches at the same time; inside one of them every attention
rank has sequences of its own, and the chips that share the experts see the tokens of all ranks.
Time is that of the fullest rank of the fullest micro-batch, which those behind it cannot overtake;
work (FLOP, traffic) is that of the mean chip.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from sim.cost.work import Number, StepShape
from sim.parallelism import Parallelism

Count = Any
"""A whole number, or an integer array with one for each of many batches; means are no whole
numbers. Indices of tables, so that the type of either is settled where it is known."""

CONTEXT_SPREAD = 0.5
"""Standard deviation over mean of the contexts in a batch. Contexts spread evenly between an
input and an input plus output of the same length have 0.19, conversations about 1; assumed in
between, because only the slowest of several attention ranks depends on it."""


class Counts(NamedTuple):
    """How a step is dealt out: what the slowest chip has in one micro-batch."""

    micro_batches: Count
    runs: Count
    """Times that a stage's duration goes by until all micro-batches have passed all stages."""
    heads: Count
    """Times that what follows the last layer is done."""
    decode: Count
    """Decoding sequences of the rank."""
    prefill: Count
    """Prompt tokens of the rank."""
    prompts: Count
    group_tokens: Count
    """Tokens of all attention ranks together."""
    context_share: Count
    """Of the keys that the decoding sequences of the replica attend to."""
    window_share: Count
    """The same inside the sliding window, where contexts hardly differ."""
    pair_share: Count
    """Of the query-key pairs of the prompts."""


@dataclass(frozen=True)
class Shares:
    """How the chips of a replica share its batch.

    Assumptions: sequences are dealt to micro-batches and attention ranks evenly, and the prompts
    of a step are of one length. A rank's contexts add up to more than the mean by the expected
    excess of the largest of ``n`` sums, ``spread * sqrt(2 ln n / sequences)``.
    """

    parallelism: Parallelism
    chunk_tokens: int
    """Most prompt tokens of one rank in one micro-batch (``max_num_batched_tokens``)."""
    context_spread: float = CONTEXT_SPREAD
    queries: int = 1
    """Tokens that each decoding sequence has in a step, drafts included."""

    @cached_property
    def whole(self) -> bool:
        """Whether every chip sees the whole batch in every step: tensor parallelism alone."""
        split = self.parallelism
        return split.pp == split.attention_dp == split.cp == 1

    @cached_property
    def micro_batches(self) -> int:
        """Batches in flight when there are enough sequences."""
        split = self.parallelism
        return (split.micro_batches or split.pp) if split.pp > 1 else 1

    def counts(self, decode: Count, prompts: Count, prefill: Count) -> Counts:
        """Deal a batch out to the slowest chip.

        Parameters
        ----------
        decode, prompts, prefill : int or integer array
            Decoding sequences, prompts, and prompt tokens of the replica's step.

        Examples
        --------
        100 sequences on two stages of four attention ranks: two micro-batches of 50, and 13 of
        them on the fullest rank.

        >>> shares = Shares(Parallelism(tp=1, pp=2, attention_dp=4), 8192)
        >>> dealt = shares.counts(100, 0, 0)
        >>> dealt.micro_batches, dealt.runs, dealt.decode, dealt.group_tokens
        (2, 2, 13, 50)

        A prompt alone leaves one of two stages idle at any time:

        >>> dealt = shares.counts(0, 1, 8000)
        >>> dealt.micro_batches, dealt.runs, dealt.prefill
        (1, 2, 8000)
        """
        split, dp, cp = self.parallelism, self.parallelism.attention_dp, self.parallelism.cp
        pieces = _most(prompts, _ceil(prefill, self.chunk_tokens))
        batches = _most(_least(decode + pieces, self.micro_batches), 1)
        spread = _most(_least(pieces, batches), 1)
        ranks = _most(_least(_ceil(pieces, spread), dp), 1)
        piece = _least(_ceil(prefill, _most(prompts, 1)), self.chunk_tokens)
        longest = _most(_ceil(prefill, spread * ranks), piece)
        own = _ceil(decode, batches * dp)
        mean_share = own / _most(decode, 1)
        excess = self._excess(_least(_ceil(decode, batches), dp), own)
        return Counts(
            micro_batches=batches,
            runs=_most(batches, split.pp),
            heads=batches,
            decode=own,
            prefill=_ceil(longest, cp),
            prompts=_ceil(prompts, spread * ranks),
            group_tokens=self.queries * _ceil(decode, batches)
            + _ceil(_most(_ceil(prefill, spread), piece), cp),
            context_share=_least(mean_share * excess, 1.0) / cp,
            window_share=mean_share / cp,
            pair_share=longest / _most(prefill, 1) / cp,
        )

    def mean(self, decode: Count, prompts: Count, prefill: Count) -> Counts:
        """Deal a batch out to the mean chip: counts are then no whole numbers.

        >>> Shares(Parallelism(tp=1, attention_dp=4), 8192).mean(1, 1, 800).prefill
        200.0
        """
        dealt = self.counts(decode, prompts, prefill)
        ranks, cp = dealt.micro_batches * self.parallelism.attention_dp, self.parallelism.cp
        return dealt._replace(
            runs=dealt.micro_batches,
            heads=dealt.micro_batches / self.parallelism.pp,
            decode=decode / ranks,
            prefill=prefill / (ranks * cp),
            prompts=prompts / ranks,
            group_tokens=(self.queries * decode + prefill / cp) / dealt.micro_batches,
            context_share=1 / (ranks * cp),
            window_share=1 / (ranks * cp),
            pair_share=1 / (ranks * cp),
        )

    def rank(self, shape: StepShape, dealt: Counts) -> StepShape:
        """Give the micro-batch of one attention rank."""
        if self.whole:
            return shape
        return StepShape(
            decode_sequences=dealt.decode,
            decode_context_tokens=shape.decode_context_tokens * dealt.context_share,
            decode_window_tokens=shape.decode_window_tokens * dealt.window_share,
            prefill_sequences=dealt.prompts,
            prefill_tokens=dealt.prefill,
            prefill_pairs=shape.prefill_pairs * dealt.pair_share,
            prefill_window_pairs=shape.prefill_window_pairs * dealt.pair_share,
            prefill_context_tokens=shape.prefill_context_tokens * dealt.pair_share,
        )

    def group(self, shape: StepShape, dealt: Counts) -> StepShape:
        """Give the tokens of one micro-batch on all attention ranks together."""
        if self.parallelism.attention_dp == 1:
            return self.rank(shape, dealt)
        return StepShape(prefill_tokens=dealt.group_tokens)

    def _excess(self, ranks: Count, sequences: Count) -> Number:
        """Contexts of the slowest of some ranks over the mean, each with so many sequences."""
        if isinstance(ranks, int) and isinstance(sequences, int):
            if ranks < 2:
                return 1.0
            return 1.0 + self.context_spread * math.sqrt(2 * math.log(ranks) / sequences)
        spread = np.sqrt(2 * np.log(np.maximum(ranks, 1)) / np.maximum(sequences, 1))
        return np.asarray(1.0 + self.context_spread * spread)


def _ceil(count: Count, parts: Count) -> Count:
    """Divide and round up."""
    return -(-count // parts)


def _least(first: Count, second: Count) -> Count:
    """Give the smaller of two numbers, or of each pair of two arrays."""
    if isinstance(first, int | float) and isinstance(second, int | float):
        return min(first, second)
    return np.minimum(first, second)


def _most(first: Count, second: Count) -> Count:
    """Give the larger of two numbers, or of each pair of two arrays."""
    if isinstance(first, int | float) and isinstance(second, int | float):
        return max(first, second)
    return np.maximum(first, second)
