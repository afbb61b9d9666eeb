"""The oracle of the engine: plain lists, a loop over every sequence at every step.

Written from the scheduling rules that vLLM v1 documents and shares no code with `sim`. As there, a
sequence has ``computed`` tokens in the cache and ``known`` ones (prompt and answer so far); in each
step it computes some or all of the difference, and a step that closes the gap samples a token.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """The configuration of all replicas."""

    block_tokens: int
    kv_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    window_tokens: int | None = None
    replicas: int = 1
    router: str = "round_robin"
    max_chunk_tokens: int | None = None
    growing_blocks: int = 1
    windowed_blocks: int = 0
    fixed_blocks: int = 0

    def blocks_of(self, tokens: int) -> int:
        """Blocks of a sequence with some tokens in the cache, counted one token at a time."""
        blocks = self.fixed_blocks if tokens else 0
        for position in range(tokens):
            if position % self.block_tokens == 0:
                blocks += self.growing_blocks
                if self.window_tokens is None or position < self.window_tokens:
                    blocks += self.windowed_blocks
        return blocks

    def chunk(self, missing: int, budget: int) -> int:
        """Tokens of one sequence in a step."""
        return min(missing, budget, self.max_chunk_tokens or missing)


@dataclass
class StepSums:
    """What the time of one step may depend on."""

    decode_sequences: int = 0
    decode_keys: int = 0
    decode_window_keys: int = 0
    prefill_sequences: int = 0
    prefill_tokens: int = 0
    prefill_pairs: int = 0
    prefill_window_pairs: int = 0


StepTicks = Callable[[StepSums], int]


@dataclass
class Job:
    """One request on its way."""

    number: int
    arrival: int
    inputs: int
    outputs: int
    answered: int = 0
    computed: int = 0
    blocks: int = 0
    decoding: bool = False
    admitted: int = -1
    first_token: int = -1
    done: int = -1
    preemptions: int = 0
    replica: int = -1
    rejected: bool = False

    @property
    def known(self) -> int:
        return self.inputs + self.answered


@dataclass
class Step:
    """One step of one replica, as it happened."""

    replica: int
    start: int
    end: int
    sums: StepSums
    tokens: int
    """Tokens sampled."""


@dataclass
class NaiveReplica:
    """A waiting list, a running list and a count of free blocks."""

    index: int
    limits: Limits
    step_ticks: StepTicks
    free: int
    waiting: list[Job] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    scheduled: list[tuple[Job, int]] = field(default_factory=list)
    start: int = 0
    boundary: int | None = None
    """When its step ends, or the moment at which it wakes up; none while idle."""
    sums: StepSums = field(default_factory=StepSums)
    seen: Counter[str] = field(default_factory=Counter)
    """How often the interesting things happened."""

    def schedule(self, now: int) -> None:
        self.scheduled = []
        budget, preempted = self.limits.max_num_batched_tokens, False
        position = 0
        while position < len(self.running) and budget > 0:
            sequence = self.running[position]
            new = self.limits.chunk(sequence.known - sequence.computed, budget)
            while not self.allocate(sequence, new):
                self.preempt(self.running.pop())
                preempted = True
                if position == len(self.running):
                    break  # it was the last itself
            else:
                self.scheduled.append((sequence, new))
                budget -= new
                position += 1
        while self.waiting and not preempted and budget > 0:
            sequence = self.waiting[0]
            new = self.limits.chunk(sequence.known, budget)
            if len(self.running) == self.limits.max_num_seqs:
                self.seen["held back by places"] += 1
                break
            if not self.allocate(sequence, new):
                self.seen["held back by blocks"] += 1
                break
            self.seen["cut prompt"] += new < sequence.known
            self.running.append(self.waiting.pop(0))
            if sequence.admitted < 0:
                sequence.admitted = now
            self.scheduled.append((sequence, new))
            budget -= new

    def allocate(self, sequence: Job, new: int) -> bool:
        wanted = self.limits.blocks_of(sequence.computed + new)
        missing = wanted - sequence.blocks
        if missing > self.free:
            return False
        sequence.blocks = wanted
        self.free -= missing
        return True

    def preempt(self, sequence: Job) -> None:
        self.seen["preempted while " + ("decoding" if sequence.decoding else "prefilling")] += 1
        self.free += sequence.blocks
        sequence.blocks = sequence.computed = 0
        sequence.decoding = False
        sequence.preemptions += 1
        self.waiting.insert(0, sequence)

    def begin_step(self, now: int) -> None:
        self.schedule(now)
        window = self.limits.window_tokens or 0
        sums = self.sums = StepSums()
        for sequence, new in self.scheduled:
            keys = [sequence.computed + number + 1 for number in range(new)]
            seen = [min(key, window) for key in keys]
            if sequence.decoding:
                sums.decode_sequences += 1
                sums.decode_keys += sum(keys)
                sums.decode_window_keys += sum(seen)
                self.seen["filled the window"] += keys[-1] == window
            else:
                sums.prefill_sequences += 1
                sums.prefill_tokens += new
                sums.prefill_pairs += sum(keys)
                sums.prefill_window_pairs += sum(seen)
        self.start = now
        self.boundary = now + self.step_ticks(sums)

    def end_step(self, now: int) -> tuple[list[Job], int]:
        """Return what completed, and how many tokens were sampled."""
        done, tokens = [], 0
        for sequence, new in self.scheduled:
            sequence.computed += new
            if sequence.computed < sequence.known:
                continue
            if not sequence.decoding:
                sequence.decoding = True
                self.move_before_unfinished_prompts(sequence)
            sequence.answered += 1
            tokens += 1
            if sequence.first_token < 0:
                sequence.first_token = now
            if sequence.answered == sequence.outputs:
                sequence.done = now
                self.free += sequence.blocks
                self.running.remove(sequence)
                done.append(sequence)
        self.scheduled = []
        return done, tokens

    def move_before_unfinished_prompts(self, sequence: Job) -> None:
        self.seen["prompt overtook a cut one"] += self.running[0] is not sequence and any(
            not other.decoding for other in self.running[: self.running.index(sequence)]
        )
        self.running.remove(sequence)
        decoding = [other for other in self.running if other.decoding]
        unfinished = [other for other in self.running if not other.decoding]
        self.running = [*decoding, sequence, *unfinished]


@dataclass
class NaiveRun:
    """A run of the oracle, and what it left behind."""

    limits: Limits
    step_ticks: StepTicks
    sequences: list[Job] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    supply: list[tuple[int, int]] = field(default_factory=list)
    """Lengths that closed-loop clients have not sent yet."""
    turn: int = 0
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        blocks = self.limits.kv_blocks
        self.replicas = [
            NaiveReplica(index, self.limits, self.step_ticks, blocks, seen=self.seen)
            for index in range(self.limits.replicas)
        ]

    def open_loop(self, requests: Sequence[tuple[int, int, int]]) -> "NaiveRun":
        """Serve (arrival, input tokens, output tokens), in order of arrival."""
        pending = [Job(number, *request) for number, request in enumerate(requests)]
        while pending or any(replica.boundary is not None for replica in self.replicas):
            boundaries = [r.boundary for r in self.replicas if r.boundary is not None]
            now = min([*boundaries, *(sequence.arrival for sequence in pending[:1])])
            while pending and pending[0].arrival == now:
                self.submit(pending.pop(0), now)
            self.pass_boundaries(now)
        return self

    def closed_loop(self, lengths: Sequence[tuple[int, int]], clients: int) -> "NaiveRun":
        """Serve clients that wait for their answers."""
        self.supply = list(lengths)
        for _ in range(clients):
            self.send(0)
        while any(replica.boundary is not None for replica in self.replicas):
            self.pass_boundaries(min(r.boundary for r in self.replicas if r.boundary is not None))
        return self

    def send(self, now: int) -> None:
        if self.supply:
            self.submit(Job(len(self.sequences), now, *self.supply.pop(0)), now)

    def submit(self, sequence: Job, now: int) -> None:
        limits = self.limits
        self.sequences.append(sequence)
        if sequence.inputs + sequence.outputs > limits.max_model_len:
            self.reject(sequence, now)
            return
        replica = self.route()
        sequence.replica = replica.index
        if limits.blocks_of(sequence.inputs + sequence.outputs - 1) > limits.kv_blocks:
            self.reject(sequence, now)
            return
        replica.waiting.append(sequence)
        if replica.boundary is None:
            replica.boundary = now

    def reject(self, sequence: Job, now: int) -> None:
        sequence.rejected = True
        self.seen["rejected"] += 1
        self.send(now)

    def route(self) -> NaiveReplica:
        if self.limits.router == "round_robin":
            self.turn += 1
            return self.replicas[(self.turn - 1) % len(self.replicas)]
        loads = [len(replica.waiting) + len(replica.running) for replica in self.replicas]
        return self.replicas[loads.index(min(loads))]

    def pass_boundaries(self, now: int) -> None:
        """Let all steps end that end now, one replica after the other, and the next ones begin."""
        while due := [replica for replica in self.replicas if replica.boundary == now]:
            replica = due[0]
            if replica.scheduled:
                done, tokens = replica.end_step(now)
                step = Step(replica.index, replica.start, now, replica.sums, tokens)
                self.steps.append(step)
                for _ in done:
                    self.send(now)
            replica.boundary = None
            if replica.waiting or replica.running:
                replica.begin_step(now)
