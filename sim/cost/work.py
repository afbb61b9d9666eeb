"""The sums over a batch that the cost of an engine step depends on, and what work means.

The cost of a step depends on a handful of sums over its batch (`StepShape`), not on the
requests one by one. Each operator (`sim.cost.operators`) turns those sums into FLOP and bytes of
memory traffic on one chip; every sum may be a number or a NumPy array, so that the timer can
evaluate thousands of batch sizes in one call.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Number = float | npt.NDArray[np.float64]
"""A count that may be one number or an array of alternatives."""

Rows = Literal["tokens", "sequences", "decode_sequences", "prefill_tokens", "prefix_tokens"]
"""The sum of the batch that sets the size of an operator. Decoding sequences count as often as
they have tokens in the step: once, and once more for every draft that is verified."""

Scope = Literal["rank", "group", "head"]
"""Whose batch an operator sees. ``rank``: that of one attention rank; ``group``: the tokens of all
attention ranks that share the experts; ``head``: that of one attention rank, once per micro-batch
in the last pipeline stage and not in every stage."""


class StepShape(NamedTuple):
    """The sums over the batch of one step that its cost depends on.

    All fields count over the whole replica; each may be a number or an array. What a caller says of
    a batch ends with ``prefill_context_tokens``: the timer fills in the rest.
    """

    decode_sequences: Number = 0
    """Sequences that produce one more token each."""
    decode_context_tokens: Number = 0
    """Keys those sequences attend to, their new token included, summed."""
    decode_window_tokens: Number = 0
    """The same with each sequence capped at the sliding window."""
    prefill_sequences: Number = 0
    """Prompts, or chunks of prompts, in the step."""
    prefill_tokens: Number = 0
    """Prompt tokens computed in the step."""
    prefill_pairs: Number = 0
    """Query-key pairs of those tokens under the causal mask."""
    prefill_window_pairs: Number = 0
    """The same with each query capped at the sliding window."""
    prefill_context_tokens: Number = 0
    """Tokens of those prompts that were in the cache before the step."""
    queries: int = 1
    """Tokens that each decoding sequence has in the step: one, and the drafts to be verified."""
    padding_tokens: Number = 0
    """Tokens that only fill the step up to a size that was captured or compiled."""
    expert_load: float = 1.0
    """Visits of the fullest expert rank over what its law of routing expects."""

    @property
    def decode_tokens(self) -> Number:
        """Tokens of the decoding sequences."""
        return self.decode_sequences * self.queries

    @property
    def tokens(self) -> Number:
        """Tokens that go through the linear layers."""
        return self.decode_tokens + self.prefill_tokens + self.padding_tokens

    @property
    def sequences(self) -> Number:
        """Rows for which logits are computed: every token that decodes, and one per prompt."""
        return self.decode_tokens + self.prefill_sequences

    @property
    def tokens_per_prompt(self) -> Number:
        """Whole tokens of each prompt in the step, at least one."""
        mean = np.floor_divide(self.prefill_tokens, np.maximum(self.prefill_sequences, 1))
        return np.maximum(mean, 1)

    def rows(self, kind: Rows) -> Number:
        """Give the sum of the batch that sets the size of an operator.

        >>> StepShape(decode_sequences=3, prefill_tokens=100).rows("tokens")
        103
        """
        counts: dict[Rows, Number] = {
            "tokens": self.tokens,
            "sequences": self.sequences,
            "decode_sequences": self.decode_tokens,
            "prefill_tokens": self.prefill_tokens,
            "prefix_tokens": self.prefill_context_tokens,
        }
        return counts[kind]


class Work(NamedTuple):
    """Work of one call of an operator on one chip."""

    flop: Number
    """Floating-point operations."""
    bytes: Number
    """Memory traffic; for a collective, the size of the message."""


def prefill_pairs(done_tokens: int, chunk_tokens: int, window_tokens: int | None = None) -> int:
    """Query-key pairs of a chunk of a prompt, under the causal mask and a sliding window.

    Parameters
    ----------
    done_tokens : int
        Prompt tokens already in the cache.
    chunk_tokens : int
        Prompt tokens computed now.
    window_tokens : int, optional
        Keys that a query sees at most, itself included.

    >>> prefill_pairs(0, 4)  # 1 + 2 + 3 + 4
    10
    >>> prefill_pairs(4, 2)  # 5 + 6
    11
    >>> prefill_pairs(0, 4, window_tokens=2)  # 1 + 2 + 2 + 2
    7
    """
    total = chunk_tokens * done_tokens + chunk_tokens * (chunk_tokens + 1) // 2
    if window_tokens is None:
        return total
    clipped = min(max(0, done_tokens + chunk_tokens - window_tokens), chunk_tokens)
    excess = done_tokens + chunk_tokens - window_tokens
    return total - (clipped * excess - clipped * (clipped - 1) // 2)
