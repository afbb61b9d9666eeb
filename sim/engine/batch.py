"""The sequences that are decoding, kept as sums instead of a list to loop over.

All sequences of a batch gain one token per step, so a sequence's context is a constant plus the
batch's step count. The sums that a step's time and memory depend on then have closed forms over
any number of steps, and the next completion is the top of a heap.
"""

from collections.abc import Iterator
from heapq import heappop, heappush

from sim.engine.kv import WHOLE_CONTEXT, BlockPhases, SequenceBlocks
from sim.engine.requests import Request
from sim.engine.stretch import Stretch
from sim.engine.window import WindowSums


class DecodeBatch:
    """Sequences in decode, in the order of their admission.

    Parameters
    ----------
    block_tokens : int
        Tokens that one KV block holds.
    window_tokens : int, optional
        Sliding window of the model's windowed layers.
    blocks : SequenceBlocks
        KV blocks that each sequence holds.
    by_priority : bool
        Preempt those of the last priority first, not simply the last admitted.
    """

    grain = 1
    """Into how many parts a token is divided in the counts of contexts."""

    def __init__(
        self,
        block_tokens: int,
        window_tokens: int | None = None,
        blocks: SequenceBlocks = WHOLE_CONTEXT,
        *,
        by_priority: bool = False,
    ) -> None:
        self.block_tokens = block_tokens
        self.by_priority = by_priority
        self._blocks = blocks
        self._held = blocks.counter(block_tokens, window_tokens)
        self._window = None if window_tokens is None else WindowSums(window_tokens, block_tokens)
        self.step = 0
        """Decode steps taken so far."""
        self.size = 0
        """Sequences in the batch."""
        self._requests: dict[int, Request] = {}
        self._classes: dict[int, dict[int, Request]] = {}
        """The same by priority, where that matters."""
        self._base_sum = 0
        self._finishing: list[tuple[int, int, Request]] = []
        self._added = 0
        self._phases = BlockPhases(block_tokens)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    @property
    def context_tokens(self) -> int:
        """Tokens in the KV cache of all sequences together."""
        return self._base_sum + self.size * self.step

    @property
    def window_tokens(self) -> int:
        """Cached tokens inside the sliding window, all sequences together; 0 without a window."""
        return 0 if self._window is None else self._window.tokens(self.step)

    @property
    def window_growing(self) -> int:
        """Sequences whose context is still shorter than the window."""
        return 0 if self._window is None else self._window.growing

    @property
    def context_growing(self) -> int:
        """Tokens by which the contexts grow in each step, all sequences together."""
        return self.size

    def stretch(self, blocks: int) -> Stretch:
        """Give the sequences' part of the next steps; they have taken blocks for the first."""
        size, window = self.size, self._window
        context_tokens = self._base_sum + size * self.step
        if window is None:
            return Stretch(size, context_tokens, size, 0, 0, blocks)
        seen_tokens = window.tokens(self.step)
        return Stretch(size, context_tokens, size, seen_tokens, window.growing, blocks)

    def decoded_tokens(self, steps: int) -> float:
        """Tokens that the sequences produce in the next steps."""
        return self.size * steps

    def context_of(self, request: Request) -> int:
        """Tokens in the KV cache of one sequence."""
        return request.base_tokens + self.step

    def blocks_of(self, request: Request) -> int:
        """KV blocks that a sequence holds."""
        return self._held(request.base_tokens + self.step)

    def final_blocks(self, request: Request) -> int:
        """KV blocks that a sequence held when it completed."""
        return self._held(request.input_tokens + request.output_tokens - 1)

    def add(self, request: Request) -> None:
        """Take in a sequence whose prefill has just produced a token that was not its last."""
        step, generated = self.step, request.generated_tokens
        request.base_tokens = base = request.input_tokens + generated - 1 - step
        request.finish_step = finish = step + request.output_tokens - generated
        self._requests[request.request_id] = request
        if self.by_priority:
            self._classes.setdefault(request.priority, {})[request.request_id] = request
        self.size += 1
        self._base_sum += base
        self._phases.count(base, 1)
        self._added += 1
        request.seat = seat = (finish, self._added, request)
        heappush(self._finishing, seat)
        if self._window is not None:
            self._window.add(request, self.step)

    def steps_to_next_change(self) -> int:
        """Count the steps until a sequence produces its last token or fills its sliding window."""
        finishing = self._finishing
        while finishing[0][2].seat is not finishing[0]:
            heappop(finishing)  # it left in mid-answer
        steps = finishing[0][0] - self.step
        if self._window is not None:
            fill = self._window.steps_to_next_fill(self.step)
            steps = steps if fill is None else min(steps, fill)
        return steps

    def blocks_needed(self, steps: int) -> int:
        """KV blocks that the next steps will allocate, as long as no window fills in between.

        >>> batch = DecodeBatch(block_tokens=16)
        >>> request = Request(0, 0, input_tokens=15, output_tokens=40)
        >>> request.generated_tokens = 1
        >>> batch.add(request)  # 15 tokens in one block: room for one more
        >>> [batch.blocks_needed(steps) for steps in (1, 2, 17, 18)]
        [0, 1, 1, 2]
        """
        if steps == 1 and self._window is None:
            return self._blocks.growing * self._phases.taken_next(self.step)
        needed = self._blocks.growing * self._phases.taken(self.step, steps)
        if self._window is not None and self._blocks.windowed:
            needed += self._blocks.windowed * self._window.phases.taken(self.step, steps)
        return needed

    def steps_within(self, free_blocks: int, limit: int) -> int:
        """Count the steps, at most ``limit``, that ``free_blocks`` suffice for."""
        if self.blocks_needed(limit) <= free_blocks:
            return limit
        cycle = self._phases.cycle(self.step)
        windowed = [0] * self.block_tokens
        if self._window is not None:
            windowed = self._window.phases.cycle(self.step)
        taken = [
            self._blocks.growing * grown + self._blocks.windowed * seen
            for grown, seen in zip(cycle, windowed, strict=True)
        ]
        cycles, left = divmod(free_blocks, sum(taken))
        steps = cycles * self.block_tokens
        for blocks in taken:
            left -= blocks
            if left < 0:
                break
            steps += 1
        return steps

    def advance(self, steps: int) -> list[Request]:
        """Take steps and return the sequences that completed with the last of them."""
        self.step = step = self.step + steps
        finishing = self._finishing
        done = []
        while finishing and finishing[0][0] <= step:
            seat = heappop(finishing)
            request = seat[2]
            if request.seat is seat:
                self._forget(request)
                request.generated_tokens = request.output_tokens
                done.append(request)
        if self._window is not None:
            self._window.advance(step)
        return done

    def last(self) -> Request:
        """Give the sequence that would be preempted first: the last admitted of the last class."""
        requests = self._requests
        if self.by_priority:
            requests = self._classes[max(self._classes)]
        return next(reversed(requests.values()))

    def preempt_last(self) -> Request:
        """Drop a sequence for want of memory, keeping count of the tokens it produced."""
        request = self.last()
        self.remove(request)
        return request

    def remove(self, request: Request) -> None:
        """Drop a sequence in mid-answer, keeping count of the tokens it produced."""
        request.generated_tokens = request.output_tokens - (request.finish_step - self.step)
        self._forget(request)

    def _forget(self, request: Request) -> None:
        request.seat, request.finish_step = None, -1
        del self._requests[request.request_id]
        if self.by_priority:
            members = self._classes[request.priority]
            del members[request.request_id]
            if not members:
                del self._classes[request.priority]
        self.size -= 1
        self._base_sum -= request.base_tokens
        self._phases.count(request.base_tokens, -1)
        if self._window is not None:
            self._window.remove(request)
