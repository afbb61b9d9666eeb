"""The rules that a replica's scheduler follows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SchedulerRules:
    """What a serving engine lets into a step, and into its memory.

    The defaults are rules of vLLM v1; limits have none.
    """

    max_num_seqs: int
    """Sequences that run at the same time."""
    max_num_batched_tokens: int
    """Tokens per step."""
    max_chunk_tokens: int | None = None
    """Tokens of one prompt per step; no limit of its own unless given."""
    max_prompts_per_step: int | None = None
    """Prompts that may come in at one step; no limit of its own unless given."""
    chunked_prefill: bool = True
    """Prompts may be cut; else each waits for a step with room for all of it."""
    prefill_first: bool = False
    """Prompts go in steps of their own, before those that decode."""
    watermark_fraction: float = 0.0
    """Share of the KV blocks that stays free when a request is let in while others run."""
    whole_prompt_must_fit: bool = False
    """A request is let in only if all of its prompt fits into the free blocks, not just the chunk
    that it begins with (vLLM from 0.19 on)."""
    steps_ahead: int = 0
    """1: a step is decided while the one before it runs, so that arrivals, and what completed
    requests give free, count from the step after the next one on."""
    tokens_per_sequence: int = 1
    """Tokens that a decoding sequence brings into a step: one, and those drafted."""
    window_tokens: int | None = None
    """Keys that windowed layers see at most."""
    poll_interval_steps: int = 1
    """Decoding steps between two looks for new requests; a step with prompts, and an idle engine,
    are followed by a look (SGLang: ``--scheduler-recv-interval``)."""
    batch_wait_steps: int = 0
    """Steps that prompts wait for others, at most, while sequences decode (TensorRT-LLM:
    ``batch_wait_timeout_iters``)."""
    batch_wait_tokens: float = 0.0
    """Tokens of a step, prompts and answers, for which they wait no longer (TensorRT-LLM:
    ``batch_wait_max_tokens_ratio`` of the tokens that a step may have)."""
