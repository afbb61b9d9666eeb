"""A decoding batch whose steps yield several tokens per sequence, kept as sums.

A sequence that needs ``steps`` steps for ``tokens`` tokens grows by the same amount in each of
them, ``tokens / steps``. That is what makes closed forms possible: contexts stay linear in the
step count, and every block that a sequence will take is due at a step that is known when it joins.
Contexts count in sixteenths of a token, a whole number of them per step, and what that rounds is
made good when the sequence leaves.
"""

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import NamedTuple
from weakref import WeakKeyDictionary

from sim.engine.batch import DecodeBatch
from sim.engine.kv import WHOLE_CONTEXT, SequenceBlocks, blocks_for
from sim.engine.requests import Request
from sim.engine.stretch import Stretch

GRAIN = 16
"""Into how many parts a token is divided in the counts of contexts."""


class _Course(NamedTuple):
    """What a sequence will do in the batch, known when it joins."""

    joined: int
    """Step count of the batch then."""
    context: int
    """Tokens in its cache then."""
    tokens: int
    """Tokens that it still has to produce."""
    steps: int
    """Steps in which it will."""

    @property
    def growth(self) -> int:
        """Grains by which its context grows in a step."""
        return (GRAIN * self.tokens + self.steps // 2) // self.steps

    @property
    def base(self) -> int:
        """Grains in its cache, less what has grown by the batch's step count."""
        return GRAIN * self.context - self.growth * self.joined

    def produced(self, step: int) -> int:
        """Tokens produced by the batch's step count."""
        return self.tokens * (step - self.joined) // self.steps

    def step_of(self, token: int) -> int:
        """Step count of the batch after the step that produces this token, counted from 1."""
        return self.joined + max(1, -(-token * self.steps // self.tokens))

    def unsettled(self, step: int) -> int:
        """Grains that the sequence has produced beyond those that its growth accounts for."""
        return GRAIN * self.produced(step) - self.growth * (step - self.joined)


class SpeculativeBatch(DecodeBatch):
    """Sequences in decode, in the order of their admission, under speculative decoding.

    Parameters
    ----------
    block_tokens : int
        Tokens that one KV block holds.
    decode_steps : callable
        Gives the steps that a request needs for a number of tokens (`DecodeSteps`).
    lookahead_tokens : int
        Slots beyond its context that a sequence holds in every step, for tokens that may be
        rejected: at least as many as are drafted.
    window_tokens : int, optional
        Sliding window of the model's windowed layers.
    blocks : SequenceBlocks
        KV blocks that each sequence holds.
    by_priority : bool
        Preempt those of the last priority first, not simply the last admitted.
    """

    grain = GRAIN

    def __init__(
        self,
        block_tokens: int,
        decode_steps: Callable[[int, int], int],
        lookahead_tokens: int,
        window_tokens: int | None = None,
        blocks: SequenceBlocks = WHOLE_CONTEXT,
        *,
        by_priority: bool = False,
    ) -> None:
        super().__init__(block_tokens, None, blocks, by_priority=by_priority)
        self.lookahead_tokens = lookahead_tokens
        self._decode_steps = decode_steps
        self._window_tokens = window_tokens
        self._held = blocks.counter(block_tokens, window_tokens)
        self._windowed = None if window_tokens is None else _WindowSums(window_tokens)
        self._courses: dict[int, _Course] = {}
        self._admitted = 0
        self._growth_sum = 0
        self._calendar = StepCalendar()
        self._settling: dict[int, int] = {}
        """Unsettled grains of the sequences that complete at a step count."""
        self._owed = 0
        """Unsettled grains of sequences that left in mid-answer since the last step."""
        self._steps_left: WeakKeyDictionary[Request, tuple[int, int]] = WeakKeyDictionary()
        """Of sequences that left in mid-answer, should they come back."""

    # -- sums ------------------------------------------------------------------------------------

    @property
    def context_tokens(self) -> int:
        """Grains in the KV cache of all sequences together."""
        return self._base_sum + self._growth_sum * self.step

    @property
    def context_growing(self) -> int:
        """Grains by which the contexts grow in each step, all sequences together."""
        return self._growth_sum

    @property
    def window_tokens(self) -> int:
        """Cached grains inside the sliding window, all sequences together; 0 without a window."""
        return 0 if self._windowed is None else self._windowed.grains(self.step)

    @property
    def window_growing(self) -> int:
        """Grains by which those grow in each step."""
        return 0 if self._windowed is None else self._windowed.growth

    def stretch(self, blocks: int) -> Stretch:
        """Give the sequences' part of the next steps; they have taken blocks for the first."""
        stretch = Stretch(
            self.size,
            self.context_tokens,
            self.context_growing,
            self.window_tokens,
            self.window_growing,
            blocks,
        )
        stretch.grain = self.grain
        return stretch

    def decoded_tokens(self, steps: int) -> float:
        """Tokens that the sequences produce in the next steps, at most up to the next change.

        Over any history, the sum over all steps and `unsettled_tokens` are exactly the tokens
        that the sequences have produced, whatever was rounded in between.
        """
        settled = self._owed + self._settling.get(self.step + steps, 0)
        return (self._growth_sum * steps + settled) / GRAIN

    @property
    def unsettled_tokens(self) -> float:
        """Tokens of sequences that left in mid-answer, to be counted with the next steps."""
        return self._owed / GRAIN

    def context_of(self, request: Request) -> int:
        """Tokens in the KV cache of one sequence."""
        course = self._courses[request.request_id]
        return course.context + course.produced(self.step)

    def blocks_of(self, request: Request) -> int:
        """KV blocks that a sequence holds."""
        course = self._courses[request.request_id]
        if course.joined == self.step:
            return self._held(course.context)
        return self._held(self.context_of(request) + self.lookahead_tokens)

    def final_blocks(self, request: Request) -> int:
        """KV blocks that a sequence held when it completed."""
        return self._held(request.input_tokens + request.output_tokens - 1 + self.lookahead_tokens)

    # -- changes ---------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Take in a sequence whose next token comes from a decode step."""
        tokens = request.output_tokens - request.generated_tokens
        before, steps = self._steps_left.pop(request, (None, 0))
        # a computation of the prompt may have given one token since; less: its client began anew
        if before is None or not before <= request.generated_tokens <= before + 1:
            steps = self._decode_steps(request.request_id, tokens)
        # The computation of a prompt after a preemption gives a token without a decode step.
        course = _Course(self.step, request.prefill_tokens - 1, tokens, min(steps, tokens))
        finish = self.step + course.steps
        number = request.request_id
        request.base_tokens = course.base
        request.finish_step = finish
        self._requests[number] = request
        self._courses[number] = course
        if self.by_priority:
            self._classes.setdefault(request.priority, {})[number] = request
        self.size += 1
        self._base_sum += course.base
        self._growth_sum += course.growth
        self._settle(finish, course.unsettled(finish))
        for step, blocks in self._block_steps(course):
            self._calendar.count(step, blocks)
        self._admitted += 1
        request.seat = seat = (finish, self._admitted, request)
        heappush(self._finishing, seat)
        if self._windowed is not None:
            self._windowed.add(number, course)

    def advance(self, steps: int) -> list[Request]:
        """Take steps and return the sequences that completed with the last of them."""
        before = self.step
        self.step = step = before + steps
        finishing = self._finishing
        done = []
        while finishing and finishing[0][0] <= step:
            seat = heappop(finishing)
            finish_step, _, request = seat
            if request.seat is seat:
                self._forget(request)
                self._settling.pop(finish_step, None)
                request.generated_tokens = request.output_tokens
                done.append(request)
        self._owed = 0
        self._calendar.forget(before, step)
        if self._windowed is not None:
            self._windowed.advance(step)
        return done

    def remove(self, request: Request) -> None:
        """Drop a sequence in mid-answer, keeping count of its tokens and of the steps it lacks."""
        course = self._courses[request.request_id]
        request.generated_tokens += course.produced(self.step)
        steps_left = course.joined + course.steps - self.step
        self._steps_left[request] = (request.generated_tokens, steps_left)
        self._owed += course.unsettled(self.step)
        self._settle(request.finish_step, -course.unsettled(request.finish_step))
        for step, blocks in self._block_steps(course):
            if step > self.step:
                self._calendar.count(step, -blocks)
        self._forget(request)

    def _settle(self, step: int, grains: int) -> None:
        """Change what is made good at a step count."""
        settled = self._settling.pop(step, 0) + grains
        if settled:
            self._settling[step] = settled

    def _forget(self, request: Request) -> None:
        number = request.request_id
        request.seat, request.finish_step = None, -1
        course = self._courses.pop(number)
        del self._requests[number]
        if self.by_priority:
            members = self._classes[request.priority]
            del members[number]
            if not members:
                del self._classes[request.priority]
        self.size -= 1
        self._base_sum -= course.base
        self._growth_sum -= course.growth
        if self._windowed is not None:
            self._windowed.remove(number)

    # -- what is to come -------------------------------------------------------------------------

    def steps_to_next_change(self) -> int:
        """Count the steps until a sequence produces its last token or fills its sliding window."""
        finishing = self._finishing
        while finishing[0][2].seat is not finishing[0]:
            heappop(finishing)  # it left in mid-answer
        steps = finishing[0][0] - self.step
        if self._windowed is not None:
            fill = self._windowed.steps_to_next_fill(self.step)
            steps = steps if fill is None else min(steps, fill)
        return steps

    def blocks_needed(self, steps: int) -> int:
        """KV blocks that the next steps will allocate.

        Six tokens in three steps, of a sequence with 13 in the cache, are two per step; three
        more slots are for what is drafted. The first step needs 13 + 2 + 3 = 18 slots, two blocks
        of 16; the prompt left it one:

        >>> batch = SpeculativeBatch(16, lambda number, tokens: 3, lookahead_tokens=3)
        >>> request = Request(0, 0, input_tokens=13, output_tokens=7)
        >>> request.generated_tokens = 1
        >>> batch.add(request)
        >>> [batch.blocks_needed(steps) for steps in (1, 2, 3)]
        [1, 1, 1]
        """
        return self._calendar.total(self.step, steps)

    def steps_within(self, free_blocks: int, limit: int) -> int:
        """Count the steps, at most ``limit``, that ``free_blocks`` suffice for."""
        return self._calendar.steps_within(self.step, free_blocks, limit)

    def _block_steps(self, course: _Course) -> Iterator[tuple[int, int]]:
        """Step counts at which a sequence takes blocks, and how many at each."""
        layers = ((self._blocks.growing, None), (self._blocks.windowed, self._window_tokens))
        slots = self.lookahead_tokens + course.context
        for blocks, window_tokens in layers:
            if not blocks:
                continue
            seen, last = course.context, slots + course.tokens
            if window_tokens is not None:
                seen, last = min(seen, window_tokens), min(last, window_tokens)
            first_block = blocks_for(seen, self.block_tokens)
            for block in range(first_block, blocks_for(last, self.block_tokens)):
                yield course.step_of(block * self.block_tokens + 1 - slots), blocks


class StepCalendar:
    """Blocks that are due at coming steps; sums over many steps read one count per `BUCKET`."""

    BUCKET = 64

    def __init__(self) -> None:
        self._buckets: dict[int, list[int]] = {}
        """Counts of so many steps each, and their total at the end."""

    def count(self, step: int, blocks: int) -> None:
        """Add blocks at a step count, or take them away where ``blocks`` is negative."""
        number, place = divmod(step, self.BUCKET)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = [0] * (self.BUCKET + 1)
        bucket[place] += blocks
        bucket[-1] += blocks

    def total(self, step: int, steps: int) -> int:
        """Count the blocks due in the ``steps`` steps after a step count.

        >>> calendar = StepCalendar()
        >>> for due in (3, 64, 200, 201):
        ...     calendar.count(due, 1)
        >>> [calendar.total(2, steps) for steps in (1, 61, 62, 198, 199)]
        [1, 1, 2, 3, 4]
        """
        if steps == 1:
            bucket = self._buckets.get((step + 1) // self.BUCKET)
            return 0 if bucket is None else bucket[(step + 1) % self.BUCKET]
        return sum(due for _, due in self._runs(step, steps))

    def steps_within(self, step: int, blocks: int, limit: int) -> int:
        """Count the steps after a step count, at most ``limit``, that ``blocks`` suffice for.

        >>> calendar = StepCalendar()
        >>> calendar.count(200, 2)
        >>> [calendar.steps_within(0, blocks, 500) for blocks in (0, 1, 2)]
        [199, 199, 500]
        """
        taken = 0
        for steps, due in self._runs(step, limit):
            if taken + due > blocks:
                return steps if due == 0 else self._singly(step, steps, blocks - taken)
            taken += due
        return limit

    def _singly(self, step: int, steps: int, blocks: int) -> int:
        """Go on from ``steps`` steps one by one while blocks are left."""
        while (due := self.total(step + steps, 1)) <= blocks:
            blocks -= due
            steps += 1
        return steps

    def _runs(self, step: int, steps: int) -> Iterator[tuple[int, int]]:
        """Cut the coming steps into runs: steps before each, and blocks due in it."""
        done = 0
        while done < steps:
            number, place = divmod(step + 1 + done, self.BUCKET)
            length = min(self.BUCKET - place, steps - done)
            bucket = self._buckets.get(number)
            if bucket is None:
                due = 0
            elif length == self.BUCKET:
                due = bucket[-1]
            else:
                due = sum(bucket[place : place + length])
            yield done, due
            done += length

    def forget(self, before: int, step: int) -> None:
        """Drop what was due up to a step count, having come there from an earlier one."""
        for number in range(before // self.BUCKET, step // self.BUCKET):
            self._buckets.pop(number, None)


class _WindowSums:
    """Keys that windowed layers attend to, in grains, summed over the batch.

    A sequence counts as full from the last step count at which its context is not longer than
    the window.
    """

    def __init__(self, window_tokens: int) -> None:
        self.growth = 0
        """Grains by which the sum grows in a step, until the next fill."""
        self._window = GRAIN * window_tokens
        self._growing: dict[int, tuple[int, int, int]] = {}
        """Base, growth and step count of filling of each sequence below the window."""
        self._base_sum = 0
        self._full = 0
        self._filling: list[tuple[int, int]] = []

    def add(self, number: int, course: _Course) -> None:
        """Take in a sequence."""
        room = self._window - GRAIN * course.context
        filled_at = course.joined + room // course.growth
        if filled_at <= course.joined:
            self._full += 1
            return
        self._growing[number] = (course.base, course.growth, filled_at)
        self._base_sum += course.base
        self.growth += course.growth
        heappush(self._filling, (filled_at, number))

    def remove(self, number: int) -> None:
        """Drop a sequence."""
        if number in self._growing:
            self._stop_growing(number)
        else:
            self._full -= 1

    def advance(self, step: int) -> None:
        """Move the sequences whose context has filled the window by this step count."""
        filling = self._filling
        while filling and filling[0][0] <= step:
            filled_at, number = heappop(filling)
            if self._fills(number, filled_at):
                self._stop_growing(number)
                self._full += 1

    def steps_to_next_fill(self, step: int) -> int | None:
        """Count the steps until the next sequence fills the window, if any will."""
        filling = self._filling
        while filling:
            filled_at, number = filling[0]
            if self._fills(number, filled_at):
                return filled_at - step
            heappop(filling)  # it left since
        return None

    def grains(self, step: int) -> int:
        """Count cached grains inside the window at the batch's step count."""
        return self._base_sum + self.growth * step + self._full * self._window

    def _fills(self, number: int, filled_at: int) -> bool:
        return number in self._growing and self._growing[number][2] == filled_at

    def _stop_growing(self, number: int) -> None:
        base, growth, _ = self._growing.pop(number)
        self._base_sum -= base
        self.growth -= growth
