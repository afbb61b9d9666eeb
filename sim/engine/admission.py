"""How much of the KV cache an engine sets aside for a request before it lets it in.

An engine that admits as long as the prompt fits may have to preempt when answers grow
(``as_needed``: vLLM). One that sets the longest answer aside never has to (``no_evict``:
TensorRT-LLM). One that sets an estimate aside seldom has to (``estimated``: SGLang).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sim.engine.batch import DecodeBatch
from sim.engine.kv import BlockPool, SequenceBlocks
from sim.engine.requests import Request

FreeAfter = Callable[[int], int]
"""Free blocks after a number of steps."""


class Reservation(Protocol):
    """Decides whether there is room for one more answer."""

    def admits(self, request: Request, new_blocks: int, free_blocks: int) -> bool:
        """Tell whether a request may come in that takes some blocks now.

        Parameters
        ----------
        request : Request
        new_blocks : int
            Of those that are free, what its next chunk takes.
        free_blocks : int
            Blocks that are known to be free.
        """
        ...

    def admitted(self, request: Request, new_blocks: int) -> None:
        """Take note that a request has come in, and takes some blocks now."""
        ...

    def took(self, request: Request, blocks: int) -> None:
        """Take note that a further chunk of its prompt has taken some blocks."""
        ...

    def joined(self, request: Request) -> None:
        """Take note that its prompt is done and it decodes now."""
        ...

    def left(self, request: Request, *, preempted: bool = False, late: bool = False) -> None:
        """Take note that an admitted request is over, for now or for good.

        ``late``: the step that is decided next does not know it yet.
        """
        ...

    def settle(self) -> None:
        """Take note that all who have left are known to have left."""
        ...

    def steps_to_admission(
        self, request: Request, new_blocks: int, limit: int, free_after: FreeAfter
    ) -> int:
        """Count the steps, at most ``limit``, after which a waiting request would be let in.

        Of a batch that only decodes meanwhile; ``free_after`` gives the free blocks after so many
        steps.
        """
        ...


class WholeAnswer:
    """Set aside what the longest answer that a client asks for would take (``no_evict``).

    Parameters
    ----------
    pool : BlockPool
    blocks : SequenceBlocks
    window_tokens : int, optional
    """

    def __init__(
        self, pool: BlockPool, blocks: SequenceBlocks, window_tokens: int | None = None
    ) -> None:
        self._pool = pool
        self._blocks = blocks
        self._window_tokens = window_tokens
        self.reserved_blocks = 0
        self._late_blocks = 0

    def admits(self, request: Request, new_blocks: int, free_blocks: int) -> bool:
        """Tell whether the whole answer fits beside those of all others."""
        del new_blocks, free_blocks
        reserved = self.reserved_blocks + self._late_blocks
        return reserved + self._longest(request) <= self._pool.total_blocks

    def admitted(self, request: Request, new_blocks: int) -> None:
        """Set the blocks aside."""
        del new_blocks
        request.reserved_blocks = self._longest(request)
        self.reserved_blocks += request.reserved_blocks

    def took(self, request: Request, blocks: int) -> None:
        """Its blocks are set aside already."""

    def joined(self, request: Request) -> None:
        """Its blocks are set aside already."""

    def left(self, request: Request, *, preempted: bool = False, late: bool = False) -> None:
        """Give them free again."""
        del preempted
        if request.keeps_blocks:
            return  # until somebody has fetched what is in its blocks
        self.reserved_blocks -= request.reserved_blocks
        if late:
            self._late_blocks += request.reserved_blocks
        request.reserved_blocks = 0

    def settle(self) -> None:
        """Count those who have left no more."""
        self._late_blocks = 0

    def steps_to_admission(
        self, request: Request, new_blocks: int, limit: int, free_after: FreeAfter
    ) -> int:
        """Nothing changes until somebody leaves."""
        del request, new_blocks, free_after
        return limit

    def _longest(self, request: Request) -> int:
        return self._blocks.held(
            request.longest_tokens - 1, self._pool.block_tokens, self._window_tokens
        )


@dataclass(frozen=True)
class AnswerEstimate:
    """How much of the answers asked for SGLang expects (``new_token_ratio``).

    Source: sglang ``python/sglang/srt/managers/schedule_policy.py`` (``PrefillAdder``) and
    ``scheduler.py``: the share falls from ``initial_fraction`` by a constant with every step that
    decodes, down to ``least_fraction``, and is set anew from what is left when a sequence has to
    be preempted.
    """

    initial_fraction: float
    least_fraction: float
    decay_steps: int
    """Steps from the initial to the least fraction."""
    longest_counted_tokens: int
    """Longer answers count as so long."""
    spare_steps: int = 20
    """Tokens that each running answer is expected to get beyond what it has, after a preemption."""

    @property
    def decay_fraction(self) -> float:
        """By how much the fraction falls in each step."""
        return (self.initial_fraction - self.least_fraction) / self.decay_steps


class EstimatedAnswer:
    """Set an estimate of the rest of the answers aside (``estimated``).

    Of those who decode, a share of what is left of the longest answer; of those whose prompts are
    not done, all of it, and the rest of the prompt. An answer that is longer than what is counted
    counts as so long from its start, where SGLang cuts what is left of it.

    Parameters
    ----------
    pool : BlockPool
    batch : DecodeBatch
    estimate : AnswerEstimate
    """

    def __init__(self, pool: BlockPool, batch: DecodeBatch, estimate: AnswerEstimate) -> None:
        self._pool = pool
        self._batch = batch
        self._estimate = estimate
        self._coming: dict[Request, int] = {}
        """Those whose prompts are not done, and the tokens that they are still to take."""
        self._coming_tokens = 0
        self._inputs = self._answers = 0
        """Prompts and longest answers of those who decode, in tokens."""
        self._decoding = 0
        self._late = self._late_answers = self._late_produced = 0
        """Those who are done, though the next step does not know it: how many, what they had asked
        for, and what they got, in tokens."""
        self._from_fraction = estimate.initial_fraction
        self._from_step = 0

    def admits(self, request: Request, new_blocks: int, free_blocks: int) -> bool:
        """Tell whether prompt and whole answer fit beside what is set aside for the others."""
        if self._is_idle():
            return True
        return self._wanted(request, new_blocks) < self._room(0, free_blocks)

    def admitted(self, request: Request, new_blocks: int) -> None:
        """Count its answer, and what is left of its prompt, among what is to come."""
        if self._is_idle():
            self._restart(self._estimate.initial_fraction)
        taken = request.computed_tokens + new_blocks * self._pool.block_tokens
        rest = max(0, request.input_tokens + request.generated_tokens - taken)
        self._coming[request] = rest + self._answer(request)
        self._coming_tokens += self._coming[request]

    def took(self, request: Request, blocks: int) -> None:
        """Count what is left of its prompt."""
        before = self._coming[request]
        rest = max(self._answer(request), before - blocks * self._pool.block_tokens)
        self._coming[request] = rest
        self._coming_tokens += rest - before

    def joined(self, request: Request) -> None:
        """Count it among those who decode."""
        self._coming_tokens -= self._coming.pop(request)
        self._decoding += 1
        self._inputs += request.input_tokens
        self._answers += self._answer(request)

    def left(self, request: Request, *, preempted: bool = False, late: bool = False) -> None:
        """Count it no more; a preemption shows that too little was set aside."""
        if late:
            self._late += 1
            self._late_answers += self._answer(request)
            self._late_produced += request.output_tokens
        if request in self._coming:
            self._coming_tokens -= self._coming.pop(request)
        else:
            self._decoding -= 1
            self._inputs -= request.input_tokens
            self._answers -= self._answer(request)
        if preempted:
            spare = self._estimate.spare_steps * (self._decoding + self._late)
            answers = self._answers + self._late_answers
            self._restart(min(1.0, (self._produced(0) + spare) / (answers + 1)))

    def settle(self) -> None:
        """Count those who have left no more."""
        self._late = self._late_answers = self._late_produced = 0

    def _is_idle(self) -> bool:
        return not (self._decoding or self._coming or self._late)

    def steps_to_admission(
        self, request: Request, new_blocks: int, limit: int, free_after: FreeAfter
    ) -> int:
        """Find the first step at which the falling estimate lets the request in.

        In blocks of one token, what is free less what is set aside is concave in the steps as long
        as the fraction falls, and does not grow after that: once it falls it never comes back.
        """
        room, concave = self._room(0, free_after(0)), self._pool.block_tokens == 1
        wanted = self._wanted(request, new_blocks)
        for steps in range(1, limit):
            now = self._room(steps, free_after(steps))
            if wanted < now:
                return steps
            if concave and now <= room:
                break
            room = now
        return limit

    def _wanted(self, request: Request, new_blocks: int) -> int:
        """Tokens of a newcomer: its next chunk and its whole answer."""
        return new_blocks * self._pool.block_tokens + self._answer(request)

    def _room(self, steps: int, free_blocks: int) -> float:
        """Free tokens less those set aside, when the batch has taken some more steps."""
        rest = max(self._answers + self._late_answers - self._produced(steps), 0)
        aside = self._fraction(self._batch.step + steps) * rest + self._coming_tokens
        return free_blocks * self._pool.block_tokens - aside

    def _produced(self, steps: int) -> int:
        """Tokens of answers that those who decode will have after some more steps.

        The last one of each is not in its context yet.
        """
        batch = self._batch
        context = batch.context_tokens + steps * batch.context_growing
        return context // batch.grain - self._inputs + batch.size + self._late_produced

    def _fraction(self, step: int) -> float:
        fallen = self._from_fraction - self._estimate.decay_fraction * (step - self._from_step)
        return max(fallen, self._estimate.least_fraction)

    def _restart(self, fraction: float) -> None:
        self._from_fraction, self._from_step = fraction, self._batch.step

    def _answer(self, request: Request) -> int:
        answer = request.longest_tokens - request.input_tokens
        return min(answer, self._estimate.longest_counted_tokens)
