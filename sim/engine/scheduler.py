"""Continuous batching as vLLM v1 does it: who computes what in the next step.

Rules (vLLM ``vllm/v1/core/sched/scheduler.py``):

1. Every step has a budget of tokens. Running sequences come first: one token for each that
   decodes, then the next chunk of the prompts that did not fit into the last step.
2. A running sequence that needs a KV block when none is free preempts the most recently admitted
   one, whose blocks are freed and whose prompt and answer so far are computed again later.
3. What is left of the budget admits waiting prompts in order of arrival, the last one cut to fit,
   as long as there are free blocks and places; not in a step that preempted.

Because admission is in order and uses up the budget, at most one prompt is unfinished at a time,
unless prompts are cut by a limit of their own (``long_prefill_token_threshold`` in vLLM). Then
unfinished prompts count as admitted after all sequences that decode, which vLLM takes in the
order of their admission: the same sequences run, but another may be preempted.
"""

from collections import deque
from dataclasses import dataclass, field

from sim.cost.work import prefill_pairs
from sim.engine.batch import DecodeBatch
from sim.engine.kv import WHOLE_CONTEXT, BlockPool, SequenceBlocks
from sim.engine.requests import Request
from sim.errors import InternalError


@dataclass(frozen=True)
class BatchLimits:
    """How much one step and one replica take in."""

    max_num_seqs: int
    """Sequences that run at the same time."""
    max_num_batched_tokens: int
    """Tokens per step."""
    max_chunk_tokens: int | None = None
    """Tokens of one prompt per step; no limit of its own unless given."""


@dataclass(slots=True)
class Stretch:
    """Consecutive steps whose batch does not change; a single step where prompts take part.

    In step ``i`` of the stretch (from 1) the decoding sequences attend to ``context_tokens +
    i * decode_sequences`` keys, and windowed layers to ``window_tokens + i * window_growing``.
    """

    decode_sequences: int
    context_tokens: int
    """Tokens in the KV cache of the decoding sequences before the first step."""
    window_tokens: int
    """The same, each sequence capped at the sliding window."""
    window_growing: int
    """Sequences that have not filled the window."""
    first_step_blocks: int
    """KV blocks that the decoding sequences take in the first step."""
    max_steps: int = 1
    """Steps until the batch must change by itself."""
    chunks: list[tuple[Request, int]] = field(default_factory=list)
    """Prompts in the step and how many of their tokens."""
    prefill_tokens: int = 0
    prefill_pairs: int = 0
    prefill_window_pairs: int = 0
    first_tokens: int = 0
    """Prompts that were completed and gave a token."""
    used_blocks: int = 0
    """KV blocks in use in the last step, before those of completed requests come back."""

    def context_sum(self, steps: int) -> int:
        """Keys attended to in the first steps, summed over steps and sequences.

        One sequence with 10 tokens in cache attends to 11, 12 and 13 keys in three steps:

        >>> Stretch(1, 10, 0, 0, 0).context_sum(3)
        36
        """
        grown = self.decode_sequences * (steps * (steps + 1) // 2)
        return steps * self.context_tokens + grown

    def window_sum(self, steps: int) -> int:
        """Keys attended to by windowed layers in the first steps."""
        return steps * self.window_tokens + self.window_growing * (steps * (steps + 1) // 2)


class Scheduler:
    """The waiting line, the running sequences and the KV blocks of one replica.

    Parameters
    ----------
    limits : BatchLimits
    pool : BlockPool
    window_tokens : int, optional
        Sliding window of the model's windowed layers.
    blocks : SequenceBlocks
        KV blocks that each sequence holds.
    """

    def __init__(
        self,
        limits: BatchLimits,
        pool: BlockPool,
        window_tokens: int | None = None,
        blocks: SequenceBlocks = WHOLE_CONTEXT,
    ) -> None:
        self.limits = limits
        self.pool = pool
        self.window_tokens = window_tokens
        self.blocks = blocks
        self.waiting: deque[Request] = deque()
        self.batch = DecodeBatch(pool.block_tokens, window_tokens, blocks)
        self.prefilling: list[Request] = []
        """Admitted prompts that are not fully computed yet, in the order of their admission."""
        self._max_chunk_tokens = limits.max_chunk_tokens or limits.max_num_batched_tokens
        self.outstanding_requests = 0
        """Accepted and not done."""

    @property
    def running_requests(self) -> int:
        """Admitted and not done: those whose prompts are in the step in progress too."""
        return self.outstanding_requests - len(self.waiting)

    def can_ever_run(self, request: Request) -> bool:
        """Tell at the door whether the whole pool could hold the longest answer asked for."""
        return self._held(request.input_tokens + request.output_tokens - 1) <= (
            self.pool.total_blocks
        )

    def add(self, request: Request) -> None:
        """Put a request at the end of the waiting line."""
        self.waiting.append(request)
        self.outstanding_requests += 1

    def admits_at_once(self) -> bool:
        """Tell whether a request that has just joined may be admitted at the next step.

        It cannot when others wait before it (whatever holds them back lasts until the batch
        changes) or when all places are taken.
        """
        return len(self.waiting) == 1 and self.running_requests < self.limits.max_num_seqs

    def plan(self, tick: int) -> Stretch:
        """Decide the next step, and for how many steps the decision holds.

        Parameters
        ----------
        tick : int
            The clock, for the records of the admitted requests.
        """
        batch, pool = self.batch, self.pool
        blocks = batch.blocks_needed(1)
        preempted = False
        if self.prefilling or blocks > pool.free_blocks:
            preempted = self._make_room()
            blocks = batch.blocks_needed(1)
        stretch = Stretch(
            batch.size, batch.context_tokens, batch.window_tokens, batch.window_growing, blocks
        )
        pool.take(blocks)
        if self.prefilling:
            for request, tokens in self._next_chunks():
                self._compute(request, tokens, stretch)
        if self.waiting and not preempted:
            self._admit(stretch, tick)
        if not stretch.chunks and not preempted:  # the next step may admit again
            stretch.max_steps = self._steps_without_change(blocks)
        return stretch

    def finish(self, stretch: Stretch, steps: int, tick: int) -> list[Request]:
        """Account for steps that have ended and return the requests that completed.

        Parameters
        ----------
        stretch : Stretch
            What `plan` returned.
        steps : int
            Steps taken, from 1 to ``stretch.max_steps``.
        tick : int
            The clock at the end of the last step.
        """
        batch, pool = self.batch, self.pool
        if steps > 1:
            pool.take(batch.blocks_needed(steps) - stretch.first_step_blocks)
        stretch.used_blocks = pool.used_blocks
        done = batch.advance(steps) if stretch.decode_sequences else []
        for request in done:
            pool.give_back(self._held(request.input_tokens + request.output_tokens - 1))
        for request, tokens in stretch.chunks:
            request.computed_tokens += tokens
            if request.computed_tokens == request.prefill_tokens:
                if request in self.prefilling:
                    self.prefilling.remove(request)
                stretch.first_tokens += 1
                self._finish_prefill(request, tick, done)
        for request in done:
            request.done_tick = tick
            request.outcome = "completed"
        self.outstanding_requests -= len(done)
        return done

    def _finish_prefill(self, request: Request, tick: int, done: list[Request]) -> None:
        request.generated_tokens += 1
        if request.first_token_tick < 0:
            request.first_token_tick = tick
        if request.generated_tokens == request.output_tokens:
            self.pool.give_back(self._held(request.computed_tokens))
            done.append(request)
        else:
            self.batch.add(request)

    def _make_room(self) -> bool:
        """Preempt the last admitted until the running sequences have blocks for one step."""
        victims = []
        while self._blocks_for_next_step() > self.pool.free_blocks:
            victims.append(self._preempt_last())
        self.waiting.extendleft(victims)
        return bool(victims)

    def _blocks_for_next_step(self) -> int:
        chunks = sum(self._chunk_blocks(*chunk) for chunk in self._next_chunks())
        return self.batch.blocks_needed(1) + chunks

    def _preempt_last(self) -> Request:
        if self.prefilling:
            request = self.prefilling.pop()
            cached = request.computed_tokens
        else:
            request = self.batch.preempt_last()
            cached = self.batch.context_of(request)
        self.pool.give_back(self._held(cached))
        request.computed_tokens = 0
        request.preemptions += 1
        return request

    def _next_chunks(self) -> list[tuple[Request, int]]:
        """Deal what the decoding sequences leave of the budget to the unfinished prompts."""
        chunks = []
        budget = self.limits.max_num_batched_tokens - self.batch.size
        for request in self.prefilling:
            left = request.prefill_tokens - request.computed_tokens
            tokens = min(left, budget, self._max_chunk_tokens)
            if not tokens:
                break
            chunks.append((request, tokens))
            budget -= tokens
        return chunks

    def _chunk_blocks(self, request: Request, tokens: int) -> int:
        after = self._held(request.computed_tokens + tokens)
        return after - self._held(request.computed_tokens)

    def _held(self, tokens: int) -> int:
        """KV blocks of a sequence with so many tokens in the cache."""
        return self.blocks.held(tokens, self.pool.block_tokens, self.window_tokens)

    def _admit(self, stretch: Stretch, tick: int) -> None:
        waiting, limits = self.waiting, self.limits
        budget = limits.max_num_batched_tokens - self.batch.size - stretch.prefill_tokens
        places = limits.max_num_seqs - self.running_requests
        while waiting and budget > 0 and places > 0:
            request = waiting[0]
            wanted = request.input_tokens + request.generated_tokens
            tokens = min(wanted, budget, self._max_chunk_tokens)
            if self._held(tokens) > self.pool.free_blocks:
                return
            waiting.popleft()
            if request.admit_tick < 0:
                request.admit_tick = tick
            if tokens < wanted:
                self.prefilling.append(request)
            self._compute(request, tokens, stretch)
            budget -= tokens
            places -= 1

    def _compute(self, request: Request, tokens: int, stretch: Stretch) -> None:
        self.pool.take(self._chunk_blocks(request, tokens))
        stretch.chunks.append((request, tokens))
        stretch.prefill_tokens += tokens
        stretch.prefill_pairs += prefill_pairs(request.computed_tokens, tokens)
        if self.window_tokens is not None:
            stretch.prefill_window_pairs += prefill_pairs(
                request.computed_tokens, tokens, self.window_tokens
            )

    def _steps_without_change(self, first_step_blocks: int) -> int:
        batch = self.batch
        if not batch.size:
            raise InternalError(f"nothing to run with {len(self.waiting)} requests waiting")
        limit = batch.steps_to_next_change()
        most = limit * batch.size * (self.blocks.growing + self.blocks.windowed)
        if most <= self.pool.free_blocks:  # a bound that spares the exact count
            return limit
        return batch.steps_within(self.pool.free_blocks + first_step_blocks, limit)
