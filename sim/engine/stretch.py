"""Consecutive steps whose batch does not change: what the engine plans, times and records."""

from dataclasses import dataclass, field

from sim.engine.requests import Request


@dataclass(slots=True)
class Stretch:
    """Consecutive steps whose batch does not change; a single step where prompts take part.

    In step ``i`` of the stretch (from 1) the decoding sequences attend to ``context_tokens +
    i * context_growing`` keys, and windowed layers to ``window_tokens + i * window_growing``.
    Contexts count in tokens, or in fractions of a token where several may come out of one step.
    """

    decode_sequences: int
    context_tokens: int
    """Tokens in the KV cache of the decoding sequences before the first step."""
    context_growing: int
    """Tokens by which that grows in each step."""
    window_tokens: int
    """Like ``context_tokens``, each sequence capped at the sliding window."""
    window_growing: int
    """Sequences that have not filled the window."""
    taken_blocks: int
    """KV blocks that the decoding sequences have taken for it: at first those of one step."""
    grain: int = 1
    """Into how many parts a token is divided in the counts of contexts."""
    max_steps: int = 1
    """Steps until the batch must change by itself."""
    chunks: list[tuple[Request, int]] = field(default_factory=list)
    """Prompts in the step and how many of their tokens."""
    prefill_tokens: int = 0
    prefill_context_tokens: int = 0
    """Tokens of those prompts that are in the cache already, which the step reads."""
    prefill_pairs: int = 0
    prefill_window_pairs: int = 0
    first_tokens: int = 0
    """Prompts that were completed and gave a token."""
    decoded_tokens: float = 0.0
    """Tokens that the decoding sequences produced."""
    used_blocks: int = 0
    """KV blocks in use in the last step, before those of completed requests come back."""

    def context_sum(self, steps: int) -> int:
        """Keys attended to in the first steps, summed over steps and sequences.

        One sequence with 10 tokens in cache attends to 11, 12 and 13 keys in three steps:

        >>> Stretch(1, 10, 1, 0, 0, 0).context_sum(3)
        36
        """
        return steps * self.context_tokens + self.context_growing * (steps * (steps + 1) // 2)

    def window_sum(self, steps: int) -> int:
        """Keys attended to by windowed layers in the first steps."""
        return steps * self.window_tokens + self.window_growing * (steps * (steps + 1) // 2)
