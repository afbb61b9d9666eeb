"""Consecutive steps whose batch does not change: what the engine plans, times and records."""

from sim.engine.requests import Request


class Stretch:
    """Consecutive steps whose batch does not change; a single step where prompts take part.

    In step ``i`` of the stretch (from 1) the decoding sequences attend to ``context_tokens +
    i * context_growing`` keys, and windowed layers to ``window_tokens + i * window_growing``.
    Contexts count in tokens, or in fractions of a token where several may come out of one step.
    """

    # Class attributes: most stretches have nothing of what these tell, and there are millions.
    grain = 1
    """Into how many parts a token is divided in the counts of contexts."""
    max_steps = 1
    """Steps until the batch must change by itself."""
    prefill_tokens = 0
    prefill_context_tokens = 0
    """Tokens of those prompts that are in the cache already, which the step reads."""
    prefill_pairs = 0
    prefill_window_pairs = 0
    encode_tokens = 0
    """Of those prompts' tokens, those of images that the replica encodes in the step."""
    encode_pairs = 0
    """Their pairs under the causal mask, each prompt's images alone."""
    first_tokens = 0
    """Prompts that were completed and gave a token."""
    decoded_tokens: float = 0.0
    """Tokens that the decoding sequences produced."""
    used_blocks = 0
    """KV blocks in use in the last step, before those of completed requests come back."""

    def __init__(
        self,
        decode_sequences: int,
        context_tokens: int,
        context_growing: int,
        window_tokens: int,
        window_growing: int,
        taken_blocks: int,
    ) -> None:
        self.decode_sequences = decode_sequences
        self.context_tokens = context_tokens
        """Tokens in the KV cache of the decoding sequences before the first step."""
        self.context_growing = context_growing
        """Tokens by which that grows in each step."""
        self.window_tokens = window_tokens
        """Like ``context_tokens``, each sequence capped at the sliding window."""
        self.window_growing = window_growing
        """Sequences that have not filled the window."""
        self.taken_blocks = taken_blocks
        """KV blocks that the decoding sequences have taken for it: at first those of one step."""
        self.chunks: list[tuple[Request, int]] = []
        """Prompts in the step and how many of their tokens."""

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
