"""The oracle of the rules in which engines differ: one replica, with a loop over all that runs.

Written from ``docs/explanation/engine-rules.md``, ``docs/reference/scenario.md`` and ADR 9, and
shares no code with `sim`. Like `naive_engine` it keeps ``computed`` and ``known`` tokens of each
sequence; unlike there, sequences hold blocks of a prefix cache, and may be held up by more rules.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from naive_engine import StepSums, StepTicks
from naive_prefix import NaivePrefixCache, NaiveSequence


@dataclass(frozen=True)
class Estimate:
    """What is set aside for answers: a share that falls with every step that decodes."""

    initial: float
    least: float
    decay_steps: int
    longest_counted: int
    spare_steps: int


@dataclass(frozen=True)
class Rules:
    """The configuration of all replicas of a pool."""

    block_tokens: int
    kv_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int = 10_000
    max_chunk_tokens: int | None = None
    max_prompts_per_step: int | None = None
    chunked_prefill: bool = True
    prefill_first: bool = False
    watermark_fraction: float = 0.0
    whole_prompt_must_fit: bool = False
    steps_ahead: int = 0
    poll_interval: int = 1
    """Decoding steps between two looks for new requests."""
    batch_wait: int = 0
    """Steps that prompts wait for others, at most, while somebody decodes."""
    batch_wait_tokens: int = 0
    """Tokens for which they wait no longer."""
    whole_answers: bool = False
    estimate: Estimate | None = None
    order: str = "fcfs"
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    by_priority: bool = False
    prefix_caching: bool = False
    swap_tokens: int = 0
    """Room for preempted sequences in the memory of the host."""
    swap_ticks: int = 1
    """Per token, to and from there."""

    def blocks_of(self, tokens: int) -> int:
        """Blocks with some tokens in them, counted one token at a time."""
        return sum(position % self.block_tokens == 0 for position in range(tokens))


@dataclass(frozen=True)
class Arrival:
    """What a client sends."""

    tick: int
    inputs: int
    outputs: int
    asked: int
    """Longest answer that it would take."""
    priority: int = 0
    tenant: int = 0
    text: tuple[tuple[int, int], ...] | None = None
    """What the prompt consists of; none: nothing that any other one has."""


@dataclass
class Link:
    """Carries one thing after the other."""

    free_at: int = 0

    def carry(self, now: int, ticks: int) -> int:
        """When something is there that is asked for now."""
        self.free_at = max(now, self.free_at) + ticks
        return self.free_at


@dataclass(eq=False)
class Job:
    """One request on its way."""

    number: int
    sent: Arrival
    answered: int = 0
    computed: int = 0
    decoding: bool = False
    held: NaiveSequence | None = None
    """Its blocks."""
    queued: int = -1
    stored: int = 0
    """Tokens whose keys and values lie elsewhere, and have to be fetched."""
    source: "tuple[NaiveServer, Job] | None" = None
    """The replica that computed them, and the part of the request that it did; none: the host."""
    part: "Job | None" = None
    whole: "Job | None" = None
    server: "NaiveServer | None" = None
    attempts: int = 1
    given_up: str | None = None
    prefill_replica: int = -1
    rank: tuple[float, ...] = ()
    """Place in the line."""
    start: float = 0.0
    """In the virtual time of fair shares."""
    admitted: int = -1
    first_token: int = -1
    done: int = -1
    cached: int = 0
    """Tokens that it found computed by others."""
    reached: int = 0
    """Tokens that had been computed for it already."""
    preemptions: int = 0
    replica: int = -1
    outcome: str = "unfinished"

    @property
    def known(self) -> int:
        """Tokens of its prompt and its answer so far."""
        return self.sent.inputs + self.answered

    @property
    def blocks(self) -> int:
        return len(self.held.hashed) + self.held.private if self.held else 0

    def tokens(self) -> list[tuple[int, int]]:
        """Prompt and answer so far; nobody else has the answer."""
        own = -1_000_000 - self.number
        text = self.sent.text or [(own, place) for place in range(self.sent.inputs)]
        return [*text, *((own, self.sent.inputs + place) for place in range(self.answered))]


class Line:
    """Who waits: a list, searched from end to end for the next one."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.jobs: list[Job] = []
        self.count = 0
        self.virtual = 0.0
        self.ends = [0.0] * len(rules.weights)

    def join(self, job: Job) -> None:
        self.count += 1
        sent = job.sent
        job.rank = (1, self.count)
        if self.rules.order == "priority":
            job.rank = (sent.priority, 1, sent.tick, job.number)
        elif self.rules.order == "fair":
            job.start = max(self.virtual, self.ends[sent.tenant])
            self.ends[sent.tenant] = job.start + sent.inputs / self.rules.weights[sent.tenant]
            job.rank = (1, job.start, job.number)
        self.jobs.append(job)

    def come_back(self, job: Job) -> None:
        """Let one that was preempted join before its equals."""
        self.count += 1
        front = (job.sent.priority,) if self.rules.order == "priority" else ()
        job.rank = (*front, 0, -self.count)
        job.start = 0.0
        self.jobs.append(job)

    def first(self, known: int) -> Job | None:
        """The next one of those that came up to some tick."""
        jobs = [job for job in self.jobs if job.queued <= known]
        return min(jobs, key=lambda job: job.rank) if jobs else None

    def leave(self, job: Job) -> None:
        self.jobs.remove(job)
        self.virtual = max(self.virtual, job.start)


Later = Callable[[int, Callable[[int], None]], None]
"""Has something done at a tick."""


@dataclass(eq=False)
class NaiveServer:
    """One replica."""

    index: int
    rules: Rules
    step_ticks: StepTicks
    seen: Counter[str]
    later: Later
    transfer_ticks: int = 0
    """Per token, from replica to replica."""
    up: bool = True
    egress: Link = field(default_factory=Link)
    ingress: Link = field(default_factory=Link)
    host: Link = field(default_factory=Link)
    swapped: int = 0
    """Tokens in the memory of the host."""
    life: int = 0
    """How often it has failed."""
    running: list[Job] = field(default_factory=list)
    """Those that decode, and after them those whose prompts are not done."""
    leaving: list[Job] = field(default_factory=list)
    """Those that are done, but were not known to be when the next step was decided."""
    fetching: list[Job] = field(default_factory=list)
    """Those that hold blocks while their keys and values are on the way."""
    ready: list[Job] = field(default_factory=list)
    """Those whose keys and values have come."""
    kept: list[Job] = field(default_factory=list)
    """Those that are done, until somebody has fetched what they computed."""
    dropped: list[tuple[Job, str]] = field(default_factory=list)
    """Those whose clients have given up, until the step in progress ends."""
    scheduled: list[tuple[Job, int]] = field(default_factory=list)
    began: int = 0
    boundary: int | None = None
    """When its step ends, or the moment at which it wakes up; none while idle."""
    is_behind: bool = False
    """Whether prompts are handed over to it."""
    share: float = 0.0
    share_steps: int = 0
    """Decoding steps since the share was set."""
    looked: int = -1
    """Up to when arrivals were looked for."""
    steps_since_look: int = 0
    steps_waited: int = 0
    waiting: bool = False
    """Whether prompts were kept back in the step in progress."""

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin without any sequence or block in use."""
        self.line = Line(self.rules)
        self.cache = NaivePrefixCache(self.rules.kv_blocks, self.rules.block_tokens)
        for jobs in (self.running, self.leaving, self.fetching, self.ready, self.kept):
            jobs.clear()
        self.scheduled, self.dropped, self.boundary = [], [], None
        self.share, self.share_steps = 0.0, 0

    @property
    def free(self) -> int:
        return len(self.cache.queue)

    def can_ever_run(self, job: Job) -> bool:
        """Whether the whole cache could hold it, and a step its prompt if that is not cut."""
        sent, rules = job.sent, self.rules
        computes = not job.stored
        if computes and not rules.chunked_prefill and sent.inputs > rules.max_num_batched_tokens:
            return False
        return self.longest_blocks(job) <= rules.kv_blocks

    def accept(self, job: Job, now: int) -> None:
        job.queued = now
        self.line.join(job)
        self.look(now)

    def look(self, now: int) -> None:
        """Wake up, if idle."""
        if self.boundary is None:
            self.boundary = now

    # -- one step -----------------------------------------------------------------------------

    def end_step(self, now: int) -> list[Job]:
        """End the step that ends now, and return who is done."""
        done = self.sample(now) if self.scheduled else []
        self.leaving = list(done)
        self.kept += [job for job in done if job.whole and job.whole.sent.outputs > 1]
        if not self.rules.steps_ahead:
            self.let_go()
        return done

    def begin_step(self, now: int, known: int, *, ended: bool) -> None:
        """Begin the next step with what was there at a tick, or with all if nothing runs then."""
        self.boundary = None
        self.scheduled = self.decide(now, known)
        if not self.scheduled and ended:
            self.let_go()  # nothing runs: all that is there counts at once
            self.scheduled = self.decide(now, now)
        elif self.leaving:
            self.seen["went while the next step was decided"] += 1
        self.let_go()
        if not self.scheduled:
            return
        sums = StepSums()
        for job, new in self.scheduled:
            keys = [job.computed + number + 1 for number in range(new)]
            if job.decoding:
                sums.decode_sequences += 1
                sums.decode_keys += sum(keys)
            else:
                sums.prefill_sequences += 1
                sums.prefill_tokens += new
                sums.prefill_pairs += sum(keys)
        self.began = now
        self.boundary = now + self.step_ticks(sums)

    def sample(self, now: int) -> list[Job]:
        done = []
        self.share_steps += any(job.decoding for job, _ in self.scheduled)
        self.steps_waited += self.waiting
        self.steps_since_look += 1
        if any(not job.decoding for job, _ in self.scheduled):
            self.steps_since_look = self.rules.poll_interval
        for job, new in self.scheduled:
            job.computed += new
            if job.computed < job.known:
                continue
            if not job.decoding:
                job.decoding = True
                self.running.remove(job)
                decoding = [other for other in self.running if other.decoding]
                self.running = [*decoding, job, *self.running[len(decoding) :]]
            job.answered += 1
            if job.first_token < 0:
                job.first_token = now
            if job.answered == job.sent.outputs:
                job.done, job.outcome = now, "completed"
                self.running.remove(job)
                done.append(job)
        self.scheduled = []
        return done

    def let_go(self) -> None:
        """Free the blocks of those that are done."""
        for job in self.leaving:
            if job.held is not None and job not in self.kept:
                self.free_blocks(job)
        self.leaving = []

    def free_blocks(self, job: Job) -> None:
        assert job.held is not None
        if self.rules.prefix_caching:
            job.held.tokens = job.tokens()
            self.cache.finish(job.held, job.computed)
        else:
            self.cache.finish(job.held, 0)
        job.held = None

    # -- who is in the next step --------------------------------------------------------------

    def decide(self, now: int, known: int) -> list[tuple[Job, int]]:
        self.take_in_ready(now, known)
        self.waiting = False
        known = self.heard_of(known)
        if not self.rules.prefill_first:
            return self.fill(now, known, decoding=True, prompts=True)
        prompts = self.fill(now, known, decoding=False, prompts=True)
        decoders = sum(job.decoding for job in self.running)
        self.seen["answers waited for prompts"] += bool(prompts and decoders)
        return prompts or self.fill(now, known, decoding=True, prompts=False)

    def fill(self, now: int, known: int, *, decoding: bool, prompts: bool) -> list[tuple[Job, int]]:
        """Give those that run their tokens, make room for them, and let others in."""
        victims: list[Job] = []
        while True:
            step = self.deal(decoding=decoding, prompts=prompts)
            wanted = sum(self.missing_blocks(job, new) for job, new in step)
            if wanted <= self.free:
                break
            victims.append(self.preempt(now))
        for job in victims:
            self.line.come_back(job)
        for job, new in step:
            self.compute(job, new)
        if prompts and not victims and not self.keeps_back(known):
            self.admit(step, now, known)
        return step

    def heard_of(self, known: int) -> int:
        """Up to when arrivals count, where the engine looks for them now and then only."""
        if self.rules.poll_interval == 1:
            return known
        decoders = any(job.decoding for job in self.running)
        if not decoders or self.steps_since_look >= self.rules.poll_interval:
            self.looked, self.steps_since_look = known, 0
        late = any(self.looked < job.queued <= known for job in self.line.jobs)
        self.seen["not looked for yet"] += late
        return self.looked

    def keeps_back(self, known: int) -> bool:
        """Whether those that could come in are to wait for others."""
        rules = self.rules
        decoders = [job for job in self.running if job.decoding]
        if not rules.batch_wait or not decoders or len(decoders) < len(self.running):
            return False
        there = [job for job in self.line.jobs if job.queued <= known]
        places = rules.max_num_seqs - self.places_taken()
        tokens, taken = len(decoders), 0
        for job in sorted(there, key=lambda job: job.rank):
            if taken < places and tokens < rules.batch_wait_tokens:
                tokens, taken = tokens + job.known, taken + 1
        full = taken >= places or tokens >= rules.batch_wait_tokens
        if full or self.steps_waited >= rules.batch_wait or not there:
            self.seen["waited long enough"] += bool(there) and not full
            self.seen["waited until there were enough"] += full and self.steps_waited > 0
            return False
        self.waiting = True
        return True

    def deal(self, *, decoding: bool, prompts: bool) -> list[tuple[Job, int]]:
        """Tokens of those that run: one for each that decodes, then prompts up to the budget."""
        step = []
        budget = self.rules.max_num_batched_tokens
        for job in self.running:
            if job.decoding and decoding:
                step.append((job, 1))
                budget -= 1
        for job in self.running:
            if not job.decoding and prompts and budget > 0:
                new = self.chunk(job.known - job.computed, budget)
                step.append((job, new))
                budget -= new
        return step

    def chunk(self, missing: int, budget: int) -> int:
        return min(missing, budget, self.rules.max_chunk_tokens or missing)

    def missing_blocks(self, job: Job, new: int) -> int:
        return self.rules.blocks_of(job.computed + new) - job.blocks

    def compute(self, job: Job, new: int) -> None:
        assert job.held is not None
        self.cache.take(job.held, self.missing_blocks(job, new))
        if self.rules.prefix_caching and not job.decoding:
            job.held.tokens = job.tokens()
            self.cache.register(job.held, job.computed + new)

    def preempt(self, now: int) -> Job:
        """Take everything from the one that was admitted last, or is the least important."""
        victim = self.running[-1]
        if self.rules.by_priority:
            worst = max(job.sent.priority for job in self.running)
            victim = [job for job in self.running if job.sent.priority == worst][-1]
            self.seen["preempted the least important"] += victim is not self.running[-1]
        self.seen["preempted while " + ("decoding" if victim.decoding else "prefilling")] += 1
        self.running.remove(victim)
        if victim.computed and self.swapped + victim.computed <= self.rules.swap_tokens:
            self.seen["swapped out"] += 1
            victim.stored = victim.computed
            self.swapped += victim.stored
            self.host.carry(now, victim.stored * self.rules.swap_ticks)
        self.free_blocks(victim)
        victim.reached = max(victim.reached, victim.computed)
        victim.computed, victim.decoding = 0, False
        victim.preemptions += 1
        victim.queued = now if self.rules.poll_interval == 1 else self.looked
        if self.rules.estimate is not None:
            left = [job for job in (*self.running, *self.leaving) if job.decoding]
            answered = sum(job.answered for job in left)
            spare = self.rules.estimate.spare_steps * len(left)
            asked = sum(self.counted_answer(job) for job in left)
            self.set_share(min(1.0, (answered + spare) / (asked + 1)))
            self.seen["retracted"] += 1
        return victim

    # -- admission ----------------------------------------------------------------------------

    def admit(self, step: list[tuple[Job, int]], now: int, known: int) -> None:
        rules = self.rules
        budget = rules.max_num_batched_tokens - sum(new for _, new in step)
        while budget > 0 and (job := self.line.first(known)) is not None:
            prompts = sum(not other.decoding for other, _ in step)
            if rules.max_prompts_per_step is not None and prompts >= rules.max_prompts_per_step:
                self.seen["held back by the number of prompts"] += 1
                return
            if self.places_taken() >= rules.max_num_seqs:
                self.seen["held back by places"] += 1
                self.seen["held back by places of the leaving"] += (
                    len(self.running) < rules.max_num_seqs
                )
                return
            new = self.let_in(job, budget, now)
            if new is None:
                return
            self.steps_waited = 0
            unknown = [other for other in self.line.jobs if other.queued > known]
            self.seen["overtook an arrival not known yet"] += any(
                other.rank < job.rank for other in unknown
            )
            if new:
                step.append((job, new))
            budget -= new
        self.seen["held back as not known yet"] += bool(budget > 0 and self.line.jobs)

    def let_in(self, job: Job, budget: int, now: int) -> int | None:
        """Tokens that a request begins with; none if it has to wait."""
        rules, cache = self.rules, self.cache
        tokens = job.tokens()
        found = cache.found(tokens[:-1]) if rules.prefix_caching else 0
        hashes = cache.hashes(tokens[: found * rules.block_tokens])
        idle = sum(cache.readers[known] == 0 for known in hashes)
        cached = found * rules.block_tokens
        missing = job.known - cached
        fetched = job.stored if job.stored > cached else 0
        new = self.chunk(missing, budget)
        if not fetched and new < missing and not rules.chunked_prefill and not job.preemptions:
            self.seen["held back as it may not be cut"] += 1
            return None
        upto = fetched + 1 if fetched else cached + new
        blocks = rules.blocks_of(upto) - found
        fits = blocks
        fetches = rules.swap_tokens > 0 or self.is_behind
        again = fetches and job.preemptions > 0
        if rules.whole_prompt_must_fit or again:
            fits = rules.blocks_of(job.known) - found
        runs = bool(self.running or self.leaving)
        spare = int(rules.watermark_fraction * rules.kv_blocks) if runs else 0
        if fetched and rules.prefill_first:
            spare += sum(self.missing_blocks(other, 1) for other in self.running if other.decoding)
        if fits + idle + spare > self.free:
            self.seen["held back by blocks"] += 1
            self.seen["held back since it was preempted"] += (
                again and not rules.whole_prompt_must_fit and blocks + idle + spare <= self.free
            )
            self.seen["held back by the rest of its prompt"] += blocks + idle + spare <= self.free
            self.seen["held back by the watermark"] += fits + idle <= self.free
            return None
        if not self.is_set_aside(job, blocks + idle):
            return None
        self.line.leave(job)
        if job.admitted < 0:
            job.admitted = now
        job.cached += max(0, max(cached, fetched) - job.reached)
        job.reached = max(job.reached, cached, fetched)
        self.seen["hit"] += cached > 0
        self.seen["hit an idle block"] += idle > 0
        self.seen["hit after a preemption"] += cached > 0 and job.preemptions > 0
        self.seen["cut prompt"] += new < missing
        job.held = cache.start(tokens, cached)
        job.computed = cached
        if fetched:
            self.fetch(job, fetched, now)
            return 0
        self.release_stored(job, now)
        self.running.append(job)
        self.compute(job, new)
        return new

    # -- keys and values that lie elsewhere -----------------------------------------------------

    def fetch(self, job: Job, upto: int, now: int) -> None:
        """Let a request hold its blocks, and one for its next token, while they are filled."""
        assert job.held is not None
        tokens = upto - job.computed
        self.seen["fetched a part only"] += job.computed > 0
        self.cache.take(job.held, self.missing_blocks(job, tokens + 1))
        self.fetching.append(job)
        if job.source is None:
            self.seen["waited for the host"] += self.host.free_at > now
            end = self.host.carry(now, tokens * self.rules.swap_ticks)
        else:
            links = (job.source[0].egress, self.ingress)
            self.seen["waited for a link"] += any(link.free_at > now for link in links)
            start = max(now, *(link.free_at for link in links))
            end = start + tokens * self.transfer_ticks
            for link in links:
                link.free_at = end
        life, attempt = self.life, job.attempts
        source, stored = job.source, job.stored

        def arrive(then: int) -> None:
            if source is not None:
                source[0].free_kept(source[1], then)
            if self.life == life and job.attempts == attempt and job in self.fetching:
                self.fetching.remove(job)
                if source is None:
                    self.swapped -= stored
                job.stored, job.source = 0, None
                job.computed, job.queued = upto, then
                self.ready.append(job)
                self.look(then)

        self.later(end, arrive)

    def release_stored(self, job: Job, now: int) -> None:
        """Free what lies elsewhere of a request that needs it no more."""
        if job.source is not None:
            job.source[0].free_kept(job.source[1], now)
        else:
            self.swapped -= job.stored
        job.stored, job.source = 0, None

    def free_kept(self, part: Job, now: int) -> None:
        if part in self.kept:
            self.kept.remove(part)
            self.free_blocks(part)
            self.look(now)

    def take_in_ready(self, now: int, known: int) -> None:
        """Give places to those whose keys and values have come, before all that wait."""
        for job in list(self.ready):
            if job.queued > known or self.places_taken() >= self.rules.max_num_seqs:
                return
            assert job.held is not None
            self.ready.remove(job)
            spare = job.blocks - self.rules.blocks_of(job.computed)
            job.held.private -= spare
            self.cache.queue += [None] * spare
            if self.rules.prefix_caching:  # others find what has come, and nothing before
                job.held.tokens = job.tokens()
                self.cache.register(job.held, job.computed)
            if job.admitted < 0:
                job.admitted = now
            # what was broken off before its first token computes the last one of its prompt
            job.decoding = job.answered > 0 and job.computed >= job.known - 1
            self.seen["came back without a token"] += not job.answered
            decoding = [other for other in self.running if other.decoding]
            place = len(decoding) if job.decoding else len(self.running)
            self.running.insert(place, job)
            self.seen["came back by the host" if job.preemptions else "came by a link"] += 1

    def places_taken(self) -> int:
        return len(self.running) + len(self.leaving)

    # -- what is set aside ----------------------------------------------------------------------

    def is_set_aside(self, job: Job, blocks: int) -> bool:
        """Whether there is room for the answer beside those of the others."""
        rules = self.rules
        others = [*self.running, *self.leaving, *self.fetching, *self.ready]
        if rules.whole_answers:
            others += [other for other in self.kept if other not in self.leaving]
            wanted = [self.longest_blocks(other) for other in [*others, job]]
            self.seen["held back by whole answers"] += sum(wanted) > rules.kv_blocks
            return sum(wanted) <= rules.kv_blocks
        if rules.estimate is None:
            return True
        if not others:
            self.set_share(rules.estimate.initial)
            return True
        wanted_tokens = blocks * rules.block_tokens + self.counted_answer(job)
        room = self.free * rules.block_tokens - self.estimated_tokens()
        self.seen["held back by the estimate"] += wanted_tokens >= room
        return wanted_tokens < room

    def longest_blocks(self, job: Job) -> int:
        return self.rules.blocks_of(job.sent.inputs + job.sent.asked - 1)

    def counted_answer(self, job: Job) -> int:
        assert self.rules.estimate is not None
        return min(job.sent.asked, self.rules.estimate.longest_counted)

    def set_share(self, share: float) -> None:
        self.share, self.share_steps = share, 0

    def estimated_tokens(self) -> float:
        """Tokens that those who run are still expected to take."""
        estimate = self.rules.estimate
        assert estimate is not None
        fall = (estimate.initial - estimate.least) / estimate.decay_steps
        share = max(estimate.least, self.share - fall * self.share_steps)
        rest = coming = 0
        for job in [*self.running, *self.leaving, *self.fetching, *self.ready]:
            if job.decoding:
                rest += self.counted_answer(job) - job.answered
            else:
                coming += self.counted_answer(job)
                coming += max(0, job.known - job.blocks * self.rules.block_tokens)
        return share * max(rest, 0) + coming
