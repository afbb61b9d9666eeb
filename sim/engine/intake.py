"""When those who have arrived may come in, where that is not at the next step.

SGLang may look for new requests every so many decoding steps only
(``--scheduler-recv-interval``), and TensorRT-LLM may let prompts wait for others while sequences
decode (``batch_wait_timeout_iters``, ``batch_wait_max_tokens_ratio``), so that fewer steps have
prompts.
"""

from sim.engine.requests import Request
from sim.engine.rules import SchedulerRules
from sim.engine.waiting import WaitingLine


class Intake:
    """What a scheduler remembers of its looks, and of how long prompts have waited.

    Parameters
    ----------
    rules : SchedulerRules
    """

    def __init__(self, rules: SchedulerRules) -> None:
        self._interval = rules.poll_interval_steps
        self._most_steps = rules.batch_wait_steps
        self._enough_tokens = rules.batch_wait_tokens
        self._tokens_per_sequence = rules.tokens_per_sequence
        self.polls = self._interval > 1
        """Whether arrivals are looked for now and then only."""
        self.seen_tick = -1
        """Up to when they have been looked for."""
        self.last_arrival_tick = -1
        self.waits = False
        """Whether prompts are kept back in the step that was decided last."""
        self._steps_since_look = 0
        self._steps_waited = 0

    @property
    def active(self) -> bool:
        """Whether the steps that pass, and everybody who arrives, have to be counted."""
        return self.polls or self.waits

    def look(self, known_tick: int, decoding: int) -> None:
        """Learn of arrivals up to a tick, if it is time to look for them, or nothing decodes."""
        if self._steps_since_look >= self._interval or not decoding:
            self.seen_tick, self._steps_since_look = known_tick, 0

    def keeps_back(self, line: WaitingLine, decoding: int, places: int, known_tick: int) -> bool:
        """Tell whether the prompts that wait are to wait for others, which would fill the step.

        Parameters
        ----------
        line : WaitingLine
        decoding : int
            Sequences of the step.
        places : int
            For how many more there is room in the batch.
        known_tick : int
            Who came later is not known yet.
        """
        tokens, free = decoding * self._tokens_per_sequence, places
        for request in line:
            if places <= 0 or tokens >= self._enough_tokens:
                break
            if request.queued_tick <= known_tick:
                tokens += request.input_tokens + request.generated_tokens
                places -= 1
        enough = places <= 0 or places == free or tokens >= self._enough_tokens
        self.waits = not enough and self._steps_waited < self._most_steps
        return self.waits

    def came_in(self) -> None:
        """Begin anew to count how long prompts wait."""
        self._steps_waited = 0

    def passed(self, steps: int, *, prompts: bool) -> None:
        """Count steps that have passed towards the next look and the end of the wait."""
        if self.waits:
            self._steps_waited += steps
        if prompts:
            self._steps_since_look = self._interval
        else:  # a look at which there was nothing new begins the count again
            self._steps_since_look = (self._steps_since_look + steps - 1) % self._interval + 1

    def limit(self, steps: int) -> int:
        """Shorten a stretch to where those who wait may be seen, or need not wait any more."""
        if self.polls and self.last_arrival_tick > self.seen_tick:
            steps = min(steps, self._interval - self._steps_since_look)
        if self.waits:
            steps = min(steps, self._most_steps - self._steps_waited)
        return steps

    def knows(self, request: Request) -> None:
        """Take note of one that comes back: whom the engine knows, it need not look for."""
        if self.polls:
            request.queued_tick = self.seen_tick
