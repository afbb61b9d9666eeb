"""Continuous batching: who computes what in the next step.

Rules of vLLM v1 (``vllm/v1/core/sched/scheduler.py``), which others change in single points:

1. Every step has a budget of tokens. Running sequences come first: one token for each that
   decodes, then the next chunk of the prompts that did not fit into the last step.
2. A running sequence that needs a KV block when none is free preempts the most recently admitted
   one, whose blocks are freed and whose prompt and answer so far are computed again later.
3. What is left of the budget admits waiting prompts in the order of the line, the last one cut to
   fit, as long as there are free blocks and places; not in a step that preempted. What a prompt
   finds in the prefix cache is not computed again.
4. With ``steps_ahead`` a step is decided while the one before it runs (vLLM's asynchronous
   scheduling): who has arrived, and what completed requests have given free since that one began,
   counts one step later. An idle engine starts at once.

With ``prefill_first`` (SGLang) prompts go in steps of their own, as long as there are any that
may come in, and decoding waits meanwhile. Who has arrived may count later still: SGLang may look
for requests every so many decoding steps only, and TensorRT-LLM may let prompts wait for others,
so that fewer steps have prompts.

Because admission is in order and uses up the budget, at most one prompt is unfinished at a time,
unless prompts are cut by a limit of their own (``long_prefill_token_threshold`` in vLLM). Then
unfinished prompts count as admitted after all sequences that decode, which vLLM takes in the
order of their admission: the same sequences run, but another may be preempted.
"""

from collections import deque

from sim.cost.work import prefill_pairs
from sim.engine.admission import Reservation
from sim.engine.batch import DecodeBatch
from sim.engine.holdings import Holdings
from sim.engine.intake import Intake
from sim.engine.kv import WHOLE_CONTEXT, BlockPool, SequenceBlocks
from sim.engine.lookup import NOTHING_FOUND, Found, KvTransport
from sim.engine.prompts import Prompts
from sim.engine.requests import Request
from sim.engine.rules import SchedulerRules
from sim.engine.stretch import Stretch
from sim.engine.waiting import WaitingLine
from sim.errors import InternalError
from sim.workload.content import Content, tokens_of


class Scheduler:
    """The waiting line, the running sequences and the KV blocks of one replica.

    Parameters
    ----------
    rules : SchedulerRules
    pool : BlockPool
    batch : DecodeBatch
    line : WaitingLine
    blocks : SequenceBlocks
        KV blocks that each sequence holds.
    reservation : Reservation, optional
        What is set aside for answers; nothing unless given.
    """

    def __init__(
        self,
        rules: SchedulerRules,
        pool: BlockPool,
        batch: DecodeBatch,
        line: WaitingLine,
        blocks: SequenceBlocks = WHOLE_CONTEXT,
        reservation: Reservation | None = None,
    ) -> None:
        self.rules = rules
        self.pool = pool
        self.batch = batch
        self.line = line
        self.blocks = blocks
        self.reservation = reservation
        self.window_tokens = rules.window_tokens
        self._transport: KvTransport | None = None
        self.prefilling = Prompts()
        """Admitted prompts that are not fully computed yet, in the order of their admission."""
        self.fetching: dict[Request, int] = {}
        """Requests that hold blocks while their keys and values are on the way, and how many
        tokens will be there."""
        self.ready: deque[Request] = deque()
        """Those whose keys and values have come, and who wait for a place."""
        self.holdings = Holdings(pool, reservation)
        self.kept = self.holdings.kept
        self.running_requests = 0
        """Admitted and not done, those whose prompts are in the step in progress included."""
        self.outstanding_requests = 0
        """Accepted and not done."""
        self.outstanding_tokens = 0
        """Prompts and longest answers of those."""
        self._now = 0
        self._known_tick = 0
        """Up to when arrivals are known to the step that is being decided."""
        self._unknown_places = 0
        self._hidden = False
        """Whether the next step may be decided otherwise for what this one did not know."""
        self._held = blocks.counter(pool.block_tokens, rules.window_tokens)
        """KV blocks of a sequence with so many tokens in the cache."""
        self._cache = self.holdings.cache
        self._looks_for_kv = self._cache is not None
        self._watermark = int(rules.watermark_fraction * pool.total_blocks)
        self._max_chunk_tokens = rules.max_chunk_tokens or rules.max_num_batched_tokens
        self._fitting_tokens = 0
        """Longest request that was found to fit into the whole pool: shorter ones do too."""
        self._tokens_per_sequence = rules.tokens_per_sequence
        self._ahead = rules.steps_ahead > 0
        self._intake = Intake(rules)

    @property
    def transport(self) -> KvTransport | None:
        """The way to keys and values that lie elsewhere; none: there are no such."""
        return self._transport

    @transport.setter
    def transport(self, transport: KvTransport | None) -> None:
        self._transport = transport
        if transport is not None and self._cache is not None:
            transport.follow(self._cache)
        self._looks_for_kv = self._cache is not None or transport is not None
        self.holdings.answers_are_looked_for = transport is not None

    @property
    def waiting_requests(self) -> int:
        """Accepted and not admitted, or preempted."""
        return len(self.line)

    def can_ever_run(self, request: Request) -> bool:
        """Tell at the door whether the whole pool could hold the longest answer asked for.

        And whether a step could take the prompt, where prompts are not cut.
        """
        rules = self.rules
        whole = not rules.chunked_prefill and request.remote is None
        if whole and request.input_tokens > rules.max_num_batched_tokens:
            return False
        longest = request.input_tokens + (request.max_tokens or request.output_tokens)
        if longest <= self._fitting_tokens:
            return True
        if self._held(longest - 1 + self._tokens_per_sequence - 1) > self.pool.total_blocks:
            return False
        self._fitting_tokens = longest
        return True

    def add(self, request: Request, tick: int) -> None:
        """Put a request at the end of the waiting line."""
        request.queued_tick = self._intake.last_arrival_tick = tick
        self.line.push(request)
        self.outstanding_requests += 1
        # `Request.longest_tokens`, without the call
        self.outstanding_tokens += request.input_tokens + (
            request.max_tokens or request.output_tokens
        )

    def cached_tokens(self, content: Content) -> int:
        """Tokens of a prompt that its prefix cache holds."""
        if self._cache is None:
            return 0
        return self._cache.match(content, tokens_of(content)).tokens

    def admits_at_once(self, request: Request) -> bool:
        """Tell whether a request that has just joined may be admitted at the next step.

        It cannot when others come before it (whatever holds them back lasts until the batch
        changes) or when all places are taken. Where the engine counts who waits, or looks for new
        requests now and then only, the next step is decided anew for any of them.
        """
        if self._intake.active:
            return True
        if self.running_requests >= self.rules.max_num_seqs:
            return False
        return len(self.line) == 1 or self.line.head() is request

    def plan(self, tick: int, known_tick: int | None = None) -> Stretch | None:
        """Decide the next step, and for how many steps the decision holds.

        Parameters
        ----------
        tick : int
            The clock, for the records of the admitted requests.
        known_tick : int, optional
            When the last step began, for engines that decide a step ahead; none: now, as
            nothing was running.

        Returns
        -------
        Stretch, optional
            None when nothing can run until something happens from outside.
        """
        self._now = tick
        rules = self.rules
        if rules.steps_ahead:  # what came while another step ran, this one could not know
            if known_tick is None or known_tick == tick:
                known_tick = tick
                self._unknown_places = 0
                self.holdings.let_go()
            self._known_tick = known_tick
            self._hidden = bool(self._unknown_places and (self.line or self.ready))
        intake = self._intake
        if intake.polls:
            intake.look(self._known_tick if self._ahead else tick, self.batch.size)
        intake.waits = False
        if self.ready:
            self._take_in_ready()
        if rules.prefill_first and (self.prefilling or self.line):
            stretch = Stretch(0, 0, 0, 0, 0, 0)
            preempted = not self._fill(stretch)
            if stretch.chunks:
                self.holdings.let_go()
                return stretch
            return self._plan_decode(preempted=preempted)
        return self._plan_mixed()

    def _plan_mixed(self) -> Stretch | None:
        """Decide a step of decoding sequences and prompts together."""
        batch, pool = self.batch, self.pool
        blocks, preempted = batch.blocks_needed(1), False
        if self.prefilling or blocks > pool.free_blocks:
            preempted = self._make_room(decoding=True)
            blocks = batch.blocks_needed(1)
        stretch = batch.stretch(blocks)
        pool.take(blocks)
        if self.prefilling:
            for request, tokens in self._next_chunks(batch.size):
                self._compute(request, tokens, stretch)
        if self.line and not preempted and not self._keeps_back():
            self._admit(stretch)
        self.holdings.let_go()
        if not stretch.chunks:
            if not batch.size:
                return None
            if not preempted and not self._hidden:  # else the next step may admit again
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
        if self._intake.active:
            self._intake.passed(steps, prompts=bool(stretch.chunks))
        if steps > 1:
            self.take_blocks(stretch, steps)
        stretch.used_blocks = pool.total_blocks - pool.free_blocks
        done: list[Request] = []
        if stretch.decode_sequences:
            stretch.decoded_tokens = batch.decoded_tokens(steps)
            done = batch.advance(steps)
            if done:
                self._free_answers(done)
        if stretch.chunks:
            self._finish_chunks(stretch, tick, done)
        if done:
            self._complete(done, tick)
        self._unknown_places = len(done) * self.rules.steps_ahead
        if not self.outstanding_requests:
            self.holdings.let_go()
        return done

    def _complete(self, done: list[Request], tick: int) -> None:
        """Count requests no more that have got their last token."""
        longest_tokens = 0
        for request in done:
            request.done_tick = tick
            request.outcome = "completed"
            longest_tokens += request.input_tokens + (request.max_tokens or request.output_tokens)
        self.outstanding_tokens -= longest_tokens
        self.outstanding_requests -= len(done)
        self.running_requests -= len(done)

    def _free_answers(self, done: list[Request]) -> None:
        """Free the blocks of those that have just got their last token while decoding."""
        for request in done:
            blocks = self.batch.final_blocks(request)
            cached = request.input_tokens + request.output_tokens - 1
            if self._ahead and self.reservation is None and not request.keeps_blocks:
                self.holdings.leaving.append((request, cached, blocks))
            else:
                self.holdings.leave(request, cached, blocks, late=self._ahead)

    def take_blocks(self, stretch: Stretch, steps: int) -> None:
        """Take the KV blocks of the first steps of a stretch, as far as it has not been done."""
        blocks = self.batch.blocks_needed(steps)
        self.pool.take(blocks - stretch.taken_blocks)
        stretch.taken_blocks = blocks

    # -- what happens from outside, between two steps ------------------------------------------

    def fetched(self, request: Request) -> None:
        """Take note that the keys and values of a request have come."""
        request.computed_tokens = self.fetching.pop(request)
        self.ready.append(request)

    def free_kept(self, request: Request) -> None:
        """Free the blocks of a request that was done before, now that they have been fetched."""
        self.holdings.fetched(request)

    def drop_waiting(self, request: Request) -> bool:
        """Take a request out of the waiting line, if it is there."""
        if not self.line.remove(request):
            return False
        self._forget(request)
        return True

    def drop(self, request: Request) -> None:
        """Take a request out between two steps, wherever it is; its blocks are free again."""
        if self.drop_waiting(request):
            return
        cached, blocks = request.computed_tokens, self._held(request.computed_tokens)
        if request in self.fetching:
            blocks = self._held(self.fetching.pop(request) + 1)  # what is in them has not come
        elif request in self.ready:
            self.ready.remove(request)
            blocks = self._held(cached + 1)
        elif request in self.prefilling:
            self.prefilling.remove(request)
            self.running_requests -= 1
        else:
            cached, blocks = self.batch.context_of(request), self.batch.blocks_of(request)
            self.batch.remove(request)
            self.running_requests -= 1
        request.keeps_blocks = False
        self.holdings.remember(request)
        self.holdings.leave(request, cached, blocks)
        self._forget(request)

    def clear(self) -> list[Request]:
        """Forget everything, as a crash does, and return the requests that were here.

        The pool is worthless afterwards: the replica comes back with a new scheduler.
        """
        waiting = list(self.line)
        running = [*self.batch, *self.prefilling, *self.ready, *self.fetching]
        for request in list(self.batch):
            request.computed_tokens = self.batch.context_of(request)
            self.batch.remove(request)
        return [*running, *waiting]

    # -- admission ------------------------------------------------------------------------------

    def _take_in_ready(self) -> None:
        """Give places to requests whose keys and values have come, before all that wait."""
        places = self.rules.max_num_seqs - self._unknown_places
        known_tick = self._known_tick if self._ahead else self._now
        while self.ready and self.running_requests < places:
            if self.ready[0].queued_tick > known_tick:
                self._hidden = True
                return
            request = self.ready.popleft()
            fetched = request.computed_tokens
            self.pool.give_back(self._held(fetched + 1) - self._held(fetched))
            self.running_requests += 1
            self.holdings.extend(request, fetched)  # others find what has come, and nothing before
            self._mark_admitted(request)
            generated = request.generated_tokens
            if generated and request.computed_tokens >= request.input_tokens + generated - 1:
                self._join(request)  # nothing is left to compute: it decodes on
            else:
                self.prefilling.append(request)

    def _admit(self, stretch: Stretch) -> None:
        rules, line = self.rules, self.line
        budget = rules.max_num_batched_tokens - stretch.prefill_tokens
        budget -= stretch.decode_sequences * self._tokens_per_sequence
        prompts = rules.max_prompts_per_step or rules.max_num_seqs
        places = rules.max_num_seqs - self._unknown_places
        known_tick = self._known_arrivals
        while budget > 0 and self.running_requests < places:
            request = line.head()
            if request is None or len(stretch.chunks) >= prompts:
                return
            if request.queued_tick > known_tick:
                if not self._intake.polls:  # else nothing changes until the next look
                    self._hidden = True
                request = line.known_head(known_tick)
                if request is None:
                    return
            tokens = self._admit_one(request, budget, stretch)
            if tokens is None:
                return
            budget -= tokens

    @property
    def _known_arrivals(self) -> int:
        """Up to when arrivals are known to the step that is being decided."""
        if self._intake.polls:
            return self._intake.seen_tick
        return self._known_tick if self._ahead else self._now

    def _keeps_back(self) -> bool:
        """Tell whether the prompts that wait are to wait for others."""
        if not self.rules.batch_wait_steps or not self.batch.size or self.prefilling:
            return False
        known_tick, intake = self._known_arrivals, self._intake
        places = self.rules.max_num_seqs - self._unknown_places - self.running_requests
        kept = intake.keeps_back(self.line, self.batch.size, places, known_tick)
        self._hidden |= kept and intake.last_arrival_tick > known_tick
        return kept

    def _admit_one(self, request: Request, budget: int, stretch: Stretch) -> int | None:
        """Let the head of the line in, and return how many of its tokens are in the step.

        None if it has to wait; 0 if it holds its blocks now and waits for what is to be fetched.
        """
        found = NOTHING_FOUND
        if self._looks_for_kv and self._may_find(request):
            found = self._find(request)
        cached, remote, _ = found
        missing = request.input_tokens + request.generated_tokens - cached
        tokens = min(missing, budget, self._max_chunk_tokens)
        may_be_cut = self.rules.chunked_prefill or request.preemptions or remote > cached
        if tokens < missing and not may_be_cut:
            return None  # it waits for a step with room for all; after a preemption it may be cut
        upto = remote + 1 if remote > cached else cached + tokens
        needed = self._held(upto) - self._held(cached) if cached else self._held(upto)
        if not self._has_room(request, needed, upto, found):
            return None
        self.line.take(request)
        self._intake.came_in()
        if found is NOTHING_FOUND and self.reservation is None:
            request.computed_tokens = 0
        else:
            self._let_in(request, found, needed)
        if remote > cached:
            self._start_fetching(request, needed, found)
            return 0
        if tokens < missing:
            self.prefilling.append(request)
        self.running_requests += 1
        if request.admit_tick < 0:
            request.admit_tick = self._now
        else:
            self._mark_admitted(request)
        self._compute(request, tokens, stretch, needed)
        return tokens

    def _may_find(self, request: Request) -> bool:
        """Tell whether anything of a request's context can be in the cache, here or elsewhere."""
        if self._transport is not None:
            return True
        if request.content is None:
            return False
        # of a prompt that nobody else sends only what it has left itself
        return request.reuse != "none" or request.preemptions > 0 or request.attempts > 1

    def _find(self, request: Request) -> Found:
        """Look up what of a request's context is in the cache, here or elsewhere."""
        cached, match = 0, None
        if self._cache is not None and request.content is not None:
            wanted = request.input_tokens + request.generated_tokens
            match = self._cache.match(request.context, wanted - 1)
            cached = match.tokens
        remote = cached
        if self._transport is not None:
            remote = self._transport.remote_tokens(request, cached)
        return Found(cached, remote, match)

    def _has_room(self, request: Request, needed: int, upto: int, found: Found) -> bool:
        """Tell whether there are blocks for a request's next chunk, as the engine's rules say.

        With ``needed`` blocks more it has the first ``upto`` tokens of its context. Blocks of those
        whose keys and values are on their way cannot be taken back, so two sequences could push
        each other out for ever, each while the other one is on its way. They do not: where there
        is such a way, whoever was preempted comes in again only with room for all of its context
        and its next step, and nothing is fetched into blocks that the decoding sequences need
        next. So one of those who come in gets on, or somebody completes before the next does.
        """
        idle, free = found.idle_blocks, self.pool.free_blocks
        must_fit, whole = needed, request.input_tokens + request.generated_tokens
        spare = self._watermark if self.running_requests or self._unknown_places else 0
        again = request.preemptions > 0 and self._transport is not None
        if again or (upto < whole and self.rules.whole_prompt_must_fit):
            whole += self._tokens_per_sequence - 1 if again else 0
            must_fit = self._held(whole) - self._held(found.cached_tokens)
        if found.remote_tokens > found.cached_tokens and self.rules.prefill_first:
            spare += self.batch.blocks_needed(1)
        if must_fit + idle + spare > free:
            return False
        return self.reservation is None or self.reservation.admits(request, needed + idle, free)

    def _let_in(self, request: Request, found: Found, needed: int) -> None:
        """Take note of what an admitted request need not compute."""
        if found.match is not None and self._cache is not None:
            request.holding = self._cache.hold(found.match)
        request.computed_tokens = found.cached_tokens
        all_here = found.remote_tokens == found.cached_tokens
        if self._transport is not None and request.remote is not None and all_here:
            self._transport.let_go(request)
        found_tokens = max(found.cached_tokens, found.remote_tokens)
        if found_tokens > request.reached_tokens:  # what had been computed for it is not spared
            request.cached_tokens += found_tokens - request.reached_tokens
            request.reached_tokens = found_tokens
        if self.reservation is not None:
            self.reservation.admitted(request, needed)

    def _start_fetching(self, request: Request, blocks: int, found: Found) -> None:
        """Let a request hold its blocks while their contents are on the way.

        With room for its next token, so that it gets on by one at least when they have come.
        """
        if self._transport is None:
            raise InternalError(f"{request} has keys and values elsewhere, and no way to them")
        # before the blocks are taken: what falls out of the cache may push out what is fetched
        self._transport.fetch(request, found.cached_tokens, found.remote_tokens)
        self.pool.take(blocks)
        self.fetching[request] = found.remote_tokens

    def _mark_admitted(self, request: Request) -> None:
        if request.admit_tick < 0:
            request.admit_tick = self._now
        elif request.left_batch_tick >= 0:
            request.preempted_ticks += self._now - request.left_batch_tick
            request.pauses += ((request.replica, request.left_batch_tick, self._now),)
            request.left_batch_tick = -1

    # -- prompts --------------------------------------------------------------------------------

    def _fill(self, stretch: Stretch) -> bool:
        """Fill a step of prompts alone; tell whether nobody was preempted for it."""
        preempted = bool(self.prefilling) and self._make_room(decoding=False)
        for request, tokens in self._next_chunks(0):
            self._compute(request, tokens, stretch)
        if self.line and not preempted and not self._keeps_back():
            self._admit(stretch)
        return not preempted

    def _next_chunks(self, decoding: int) -> list[tuple[Request, int]]:
        """Deal what the decoding sequences leave of the budget to the unfinished prompts."""
        budget = self.rules.max_num_batched_tokens - decoding * self._tokens_per_sequence
        return self.prefilling.chunks(budget, self._max_chunk_tokens)

    def _compute(
        self, request: Request, tokens: int, stretch: Stretch, blocks: int | None = None
    ) -> None:
        done, further = request.computed_tokens, blocks is None
        if blocks is None:
            blocks = self._held(done + tokens) - self._held(done)
        self.pool.take(blocks)
        if further and self.reservation is not None:
            self.reservation.took(request, blocks)
        if request.holding is not None:
            self.holdings.extend(request, done + tokens)
        stretch.chunks.append((request, tokens))
        stretch.prefill_tokens += tokens
        stretch.prefill_context_tokens += done
        stretch.prefill_pairs += prefill_pairs(done, tokens)
        if self.window_tokens is not None:
            stretch.prefill_window_pairs += prefill_pairs(done, tokens, self.window_tokens)

    def _finish_chunks(self, stretch: Stretch, tick: int, done: list[Request]) -> None:
        for request, tokens in stretch.chunks:
            request.computed_tokens = computed = request.computed_tokens + tokens
            request.prefilled_tokens += tokens
            generated = request.generated_tokens
            if computed < request.input_tokens + generated:
                continue
            if self.prefilling and request in self.prefilling:
                self.prefilling.remove(request)
            stretch.first_tokens += 1
            request.first_tokens += 1
            request.generated_tokens = generated = generated + 1
            if request.first_token_tick < 0:
                request.first_token_tick = tick
            if generated == request.output_tokens:
                self.holdings.leave(request, computed, self._held(computed), late=self._ahead)
                done.append(request)
            else:
                self._join(request)

    def _join(self, request: Request) -> None:
        """Let a request decode."""
        if self.reservation is not None:
            self.reservation.joined(request)
        self.batch.add(request)

    # -- decoding -------------------------------------------------------------------------------

    def _plan_decode(self, *, preempted: bool) -> Stretch | None:
        """Decide a stretch of decoding alone."""
        batch, pool = self.batch, self.pool
        blocks = batch.blocks_needed(1)
        if blocks > pool.free_blocks:
            preempted = self._make_room(decoding=True)
            blocks = batch.blocks_needed(1)
        self.holdings.let_go()
        if not batch.size:
            return None
        stretch = batch.stretch(blocks)
        pool.take(blocks)
        if not (preempted or self.prefilling or self._hidden):
            stretch.max_steps = self._steps_without_change(blocks)
        return stretch

    def _steps_without_change(self, first_step_blocks: int) -> int:
        batch, pool = self.batch, self.pool
        limit = batch.steps_to_next_change()
        most = limit * batch.size * (self.blocks.growing + self.blocks.windowed)
        if most * self._tokens_per_sequence > pool.free_blocks:  # a bound spares the exact count
            limit = batch.steps_within(pool.free_blocks + first_step_blocks, limit)
        head = self.line.head()
        if head is None:
            return limit
        if self._transport is not None and self._may_find_less(head, self._transport):
            return 1
        if self.reservation is not None and limit > 1:
            free_blocks = pool.free_blocks + first_step_blocks
            limit = self._steps_to_admission(head, self.reservation, limit, free_blocks)
        if self._intake.active:
            limit = self._intake.limit(limit)
        return limit

    def _may_find_less(self, head: Request, transport: KvTransport) -> bool:
        """Tell whether the head of the line may find something else at the next step.

        Of what it finds here, idle blocks may go to those who decode; it then fetches more, and
        may need fewer blocks than for the chunk that it would begin with.
        """
        return transport.changes_by_itself or self._find(head).idle_blocks > 0

    def _steps_to_admission(
        self, request: Request, reservation: Reservation, limit: int, free_blocks: int
    ) -> int:
        """Count the steps after which the head of the line may come in, though nobody leaves.

        ``free_blocks`` are those before the first step. Those who decode take theirs before others
        are let in, unless prompts come first.
        """
        if self.running_requests >= self.rules.max_num_seqs:
            return limit
        found = self._find(request) if self._looks_for_kv else NOTHING_FOUND
        upto = found.remote_tokens + 1
        if found.remote_tokens == found.cached_tokens:
            budget = self.rules.max_num_batched_tokens
            if not self.rules.prefill_first:
                budget -= self.batch.size * self._tokens_per_sequence
            missing = request.input_tokens + request.generated_tokens - found.cached_tokens
            upto = found.cached_tokens + min(missing, budget, self._max_chunk_tokens)
        blocks = self._held(upto) - self._held(found.cached_tokens)
        taken = int(not self.rules.prefill_first)
        return reservation.steps_to_admission(
            request,
            blocks,
            limit,
            lambda steps: free_blocks - self.batch.blocks_needed(steps + taken),
        )

    # -- preemption -----------------------------------------------------------------------------

    def _make_room(self, *, decoding: bool) -> bool:
        """Preempt the last admitted until the running sequences have blocks for one step."""
        victims = []
        while self._blocks_for_next_step(decoding=decoding) > self.pool.free_blocks:
            victims.append(self._preempt_last())
        for request in victims:
            self.line.push_front(request)
        return bool(victims)

    def _blocks_for_next_step(self, *, decoding: bool) -> int:
        blocks = self.batch.blocks_needed(1) if decoding else 0
        for request, tokens in self._next_chunks(self.batch.size if decoding else 0):
            done = request.computed_tokens
            blocks += self._held(done + tokens) - self._held(done)
        return blocks

    def _preempt_last(self) -> Request:
        if self.prefilling.go_before(self.batch):
            request = self.prefilling.last(by_priority=self.batch.by_priority)
            self.prefilling.remove(request)
            cached, blocks = request.computed_tokens, self._held(request.computed_tokens)
        else:
            request = self.batch.last()
            cached, blocks = self.batch.context_of(request), self.batch.blocks_of(request)
            self.batch.remove(request)
        if self.reservation is not None:
            self.reservation.left(request, preempted=True)
        self.holdings.remember(request, preempted=True)
        if self._transport is not None:
            self._transport.swap_out(request, cached)
        self.holdings.free(request, cached, blocks)
        request.reached_tokens = max(request.reached_tokens, cached)
        request.computed_tokens = 0
        request.preemptions += 1
        request.left_batch_tick = request.queued_tick = self._now
        self._intake.knows(request)
        self.running_requests -= 1
        return request

    # -- blocks ---------------------------------------------------------------------------------

    def _forget(self, request: Request) -> None:
        """Count a request no more that has left before its end."""
        self.outstanding_requests -= 1
        self.outstanding_tokens -= request.longest_tokens
