"""The speculative batch against a list of sequences that are walked step by step."""

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from sim.engine.batch import DecodeBatch
from sim.engine.kv import SequenceBlocks
from sim.engine.requests import Request
from sim.engine.speculative import GRAIN, SpeculativeBatch


@dataclass
class Sequence:
    """One sequence of the oracle."""

    request: Request
    context: int
    tokens: int
    steps: int
    taken: int = 0
    held: int = 0
    full: bool = False

    @property
    def produced(self) -> int:
        return floor(Fraction(self.tokens * self.taken, self.steps))

    @property
    def growth(self) -> int:
        return floor(Fraction(GRAIN * self.tokens, self.steps) + Fraction(1, 2))

    @property
    def grains(self) -> int:
        return GRAIN * self.context + self.growth * self.taken


class NaiveBatch:
    """Lists and loops: what the batch says in closed form."""

    def __init__(
        self, block_tokens: int, lookahead: int, window: int | None, blocks: SequenceBlocks
    ) -> None:
        self.block_tokens, self.lookahead = block_tokens, lookahead
        self.window, self.blocks = window, blocks
        self.sequences: list[Sequence] = []
        self.made = Fraction(0)
        """Tokens produced by all steps."""

    def add(self, request: Request, steps: int) -> None:
        tokens = request.output_tokens - request.generated_tokens
        sequence = Sequence(request, request.prefill_tokens - 1, tokens, min(steps, tokens))
        sequence.held = self.blocks.held(sequence.context, self.block_tokens, self.window)
        self.sequences.append(sequence)
        self.fill(sequence)

    def fill(self, sequence: Sequence) -> None:
        """A sequence is full as soon as its next step would take it beyond the window."""
        if self.window is not None and sequence.grains + sequence.growth > GRAIN * self.window:
            sequence.full = True

    def step(self) -> tuple[int, list[Request]]:
        """Take one step: blocks taken, and who completed."""
        taken = 0
        for sequence in self.sequences:
            before = sequence.produced
            sequence.taken += 1
            self.made += sequence.produced - before
            slots = sequence.context + sequence.produced + self.lookahead
            held = self.blocks.held(slots, self.block_tokens, self.window)
            taken += held - sequence.held
            sequence.held = held
            self.fill(sequence)
        done = [each.request for each in self.sequences if each.taken == each.steps]
        self.sequences = [each for each in self.sequences if each.taken < each.steps]
        return taken, done

    def blocks_due(self, steps: int) -> list[int]:
        """Blocks taken in each of the next steps, as long as all sequences last."""
        due = []
        for ahead in range(1, steps + 1):
            total = 0
            for each in self.sequences:
                slots = [
                    each.context
                    + floor(Fraction(each.tokens * (each.taken + i), each.steps))
                    + self.lookahead
                    for i in (ahead - 1, ahead)
                ]
                before, after = (self.blocks.held(s, self.block_tokens, self.window) for s in slots)
                total += after - (each.held if ahead == 1 else before)
            due.append(total)
        return due

    @property
    def context(self) -> int:
        return sum(each.grains for each in self.sequences)

    @property
    def in_window(self) -> int:
        if self.window is None:
            return 0
        full = GRAIN * self.window
        return sum(full if each.full else each.grains for each in self.sequences)


requests = st.tuples(st.integers(1, 90), st.integers(2, 120), st.floats(0, 1), st.integers(0, 1))
"""Input tokens, output tokens, where the steps lie between the fewest and the most, priority."""
actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), requests),
        st.tuples(st.just("advance"), st.integers(1, 60)),
        st.tuples(st.just("preempt"), st.booleans()),
        st.tuples(st.just("remove"), st.integers(0, 9)),
        st.tuples(st.just("return"), st.booleans()),
    ),
    min_size=1,
    max_size=40,
)
shapes = st.fixed_dictionaries(
    {
        "block_tokens": st.sampled_from([1, 3, 16]),
        "lookahead": st.integers(0, 5),
        "window": st.one_of(st.none(), st.integers(1, 100)),
        "blocks": st.sampled_from(
            [SequenceBlocks(), SequenceBlocks(2, 3, 1), SequenceBlocks(0, 1, 0)]
        ),
        "by_priority": st.booleans(),
    }
)


class History:
    """A run of random actions, applied to the batch and to the oracle at once."""

    def __init__(self, shape: dict[str, object], *, single: bool) -> None:
        block_tokens, lookahead = shape["block_tokens"], shape["lookahead"]
        window, blocks = shape["window"], shape["blocks"]
        assert isinstance(block_tokens, int)
        assert isinstance(lookahead, int)
        assert window is None or isinstance(window, int)
        assert isinstance(blocks, SequenceBlocks)
        self.wanted: dict[int, int] = {}
        self.batch = SpeculativeBatch(
            block_tokens,
            lambda number, _: self.wanted[number],
            lookahead,
            window,
            blocks,
            by_priority=bool(shape["by_priority"]),
        )
        self.naive = NaiveBatch(block_tokens, lookahead, window, blocks)
        self.single, self.widest = single, lookahead + 1
        self.away: list[tuple[Request, int]] = []
        self.counted = 0.0
        self.events: list[object] = []
        self.made = 0

    def play(self, script: list[tuple[str, object]]) -> None:
        for name, value in script:
            if name == "add":
                self.add(value)
            elif name == "advance":
                assert isinstance(value, int)
                self.advance(value)
            elif name == "preempt" and self.batch.size:
                self.drop(self.batch.last())
            elif name == "remove" and self.batch.size:
                assert isinstance(value, int)
                self.drop(list(self.batch)[value % self.batch.size])
            elif name == "return" and self.away:
                self.come_back(computed=bool(value))
            self.compare()
        while self.batch.size:
            self.advance(1000)
            self.compare()

    def add(self, value: object) -> None:
        inputs, outputs, share, priority = cast("tuple[int, int, float, int]", value)
        request = Request(self.made, 0, inputs, outputs)
        request.generated_tokens, request.priority = 1, priority
        fewest, most = -(-(outputs - 1) // self.widest), outputs - 1
        self.wanted[self.made] = steps = fewest + round(share * (most - fewest))
        self.made += 1
        self.batch.add(request)
        self.naive.add(request, steps)

    def advance(self, most: int) -> None:
        if not self.batch.size:
            return
        steps = min(most, self.batch.steps_to_next_change())
        due = self.naive.blocks_due(steps)
        for ahead in {1, steps, (steps + 1) // 2}:
            assert self.batch.blocks_needed(ahead) == sum(due[:ahead])
        for free in {0, 1, sum(due) // 2, sum(due)}:
            fits = next((i for i in range(steps) if sum(due[: i + 1]) > free), steps)
            assert self.batch.steps_within(free, steps) == fits
        self.take(steps, sum(due))

    def take(self, steps: int, due: int) -> None:
        """Take the steps at once or one by one; the oracle always walks."""
        gone: list[Request] = []
        blocks = 0
        if self.single:
            for _ in range(steps):
                self.counted += self.batch.decoded_tokens(1)
                blocks += self.batch.blocks_needed(1)
                gone += self.batch.advance(1)
        else:
            self.counted += self.batch.decoded_tokens(steps)
            blocks = self.batch.blocks_needed(steps)
            gone = self.batch.advance(steps)
        walked: list[Request] = []
        for _ in range(steps):
            assert not walked  # only the last step may complete any
            walked = self.naive.step()[1]
        assert blocks == due
        assert sorted(r.request_id for r in gone) == sorted(r.request_id for r in walked)
        assert all(r.generated_tokens == r.output_tokens for r in gone)
        self.events.append((self.batch.step, [r.request_id for r in gone], blocks))

    def drop(self, request: Request) -> None:
        sequence = next(each for each in self.naive.sequences if each.request is request)
        assert self.batch.context_of(request) == sequence.context + sequence.produced
        assert self.batch.blocks_of(request) == sequence.held
        before = request.generated_tokens
        self.batch.remove(request)
        self.naive.sequences.remove(sequence)
        assert request.generated_tokens == before + sequence.produced
        assert request.generated_tokens < request.output_tokens
        self.away.append((request, sequence.steps - sequence.taken))

    def come_back(self, *, computed: bool) -> None:
        """Return after a computation of the answer so far, which gives a token, or a swap."""
        request, steps = self.away.pop(0)
        request.generated_tokens += computed
        if request.generated_tokens == request.output_tokens:
            return
        self.wanted[request.request_id] = -1  # it must not be drawn again
        self.batch.add(request)
        self.naive.add(request, steps)

    def compare(self) -> None:
        batch, naive = self.batch, self.naive
        assert batch.size == len(naive.sequences)
        assert batch.context_tokens == naive.context
        assert batch.context_growing == sum(each.growth for each in naive.sequences)
        assert batch.window_tokens == naive.in_window
        assert batch.window_growing == (
            0
            if naive.window is None
            else sum(each.growth for each in naive.sequences if not each.full)
        )
        # What the steps were said to produce is what the sequences have, to the last grain.
        rounded = sum(GRAIN * each.produced - each.growth * each.taken for each in naive.sequences)
        produced = self.counted + batch.unsettled_tokens + Fraction(rounded, GRAIN)
        assert produced == naive.made


@given(shapes, actions)
def test_closed_forms_are_what_a_walk_gives(
    shape: dict[str, object], script: list[tuple[str, object]]
) -> None:
    History(shape, single=False).play(script)


@given(shapes, actions)
def test_jumps_equal_single_steps(
    shape: dict[str, object], script: list[tuple[str, object]]
) -> None:
    jump, walk = History(shape, single=False), History(shape, single=True)
    jump.play(script)
    walk.play(script)
    assert jump.events == walk.events
    assert jump.counted == walk.counted
    assert jump.batch.unsettled_tokens == walk.batch.unsettled_tokens


@given(st.lists(requests, min_size=1, max_size=12), st.integers(1, 40), st.data())
def test_one_token_per_step_is_plain_decoding(
    sizes: list[tuple[int, int, float, int]], window: int, data: st.DataObject
) -> None:
    blocks = SequenceBlocks(1, 2, 0)
    plain = DecodeBatch(4, window, blocks)
    batch = SpeculativeBatch(4, lambda _, tokens: tokens, 0, window, blocks)
    pairs = []
    for number, (inputs, outputs, _, _) in enumerate(sizes):
        pair = Request(number, 0, inputs, outputs), Request(number, 0, inputs, outputs)
        pairs.append(pair)
        for request, each in zip(pair, (plain, batch), strict=True):
            request.generated_tokens = 1
            each.add(request)
        if data.draw(st.booleans()):
            step_both(plain, batch, data)
    while plain.size:
        step_both(plain, batch, data)


def step_both(plain: DecodeBatch, batch: SpeculativeBatch, data: st.DataObject) -> None:
    """Advance both alike, and see that they say the same."""
    if not plain.size:
        return
    assert batch.context_tokens == GRAIN * plain.context_tokens
    assert batch.context_growing == GRAIN * plain.context_growing
    assert batch.window_tokens == GRAIN * plain.window_tokens
    assert batch.window_growing == GRAIN * plain.window_growing
    change = plain.steps_to_next_change()
    assert batch.steps_to_next_change() == change
    steps = data.draw(st.integers(1, change))
    assert batch.blocks_needed(steps) == plain.blocks_needed(steps)
    assert batch.decoded_tokens(steps) == plain.decoded_tokens(steps)
    free = data.draw(st.integers(0, 20))
    assert batch.steps_within(free, change) == plain.steps_within(free, change)
    done, others = plain.advance(steps), batch.advance(steps)
    assert {r.request_id for r in done} == {r.request_id for r in others}
    for request, other in zip(plain, batch, strict=True):
        assert plain.context_of(request) == batch.context_of(other)
        assert plain.blocks_of(request) == batch.blocks_of(other)
