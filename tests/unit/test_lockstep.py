"""Attention ranks in lockstep, worked out on paper."""

from pathlib import Path

import pytest
from small_scenarios import forecast_of, write

from sim.catalog import open_catalog
from sim.engine.batch import DecodeBatch
from sim.engine.kv import BlockPool
from sim.engine.lockstep import LockstepScheduler, LockstepStretch, RankChoice, RankedPace
from sim.engine.requests import Request
from sim.engine.rules import SchedulerRules
from sim.engine.scheduler import Scheduler
from sim.engine.stretch import Stretch
from sim.engine.waiting import FcfsLine
from sim.errors import InternalError
from sim.parallelism import Parallelism
from sim.replica_plan import own_schedulers
from sim.report.data import RunTables
from sim.scenario import load_scenario
from sim.service import service_of
from sim.serving import ServingEngine

CATALOG = open_catalog()


def rank(places: int = 4, blocks: int = 100, block_tokens: int = 4) -> Scheduler:
    rules = SchedulerRules(max_num_seqs=places, max_num_batched_tokens=16)
    pool = BlockPool(blocks, block_tokens)
    return Scheduler(rules, pool, DecodeBatch(block_tokens), FcfsLine())


def ranks(
    count: int = 2, choice: RankChoice = "fewest_waiting", places: int = 4, blocks: int = 100
) -> LockstepScheduler:
    return LockstepScheduler([rank(places, blocks) for _ in range(count)], choice)


def request(number: int, inputs: int = 4, outputs: int = 3) -> Request:
    return Request(number, 0, inputs, outputs)


def places(group: LockstepScheduler) -> list[int]:
    return [each.outstanding_requests for each in group.ranks]


def turn(
    group: LockstepScheduler, tick: int, steps: int | None = None
) -> tuple[Stretch, list[int]]:
    """Take the next stretch, or its first steps, and tell who completed."""
    stretch = group.plan(tick)
    assert stretch is not None
    steps = stretch.max_steps if steps is None else steps
    done = group.finish(stretch, steps, tick + steps)
    return stretch, [each.request_id for each in done]


class TestDealing:
    def test_fewest_waiting(self) -> None:
        """One running on the first rank is 1, one that waits on the second is 4."""
        group = ranks(places=1)
        group.add(request(0), 0)
        turn(group, 0)
        group.add(request(1), 1)
        assert places(group) == [1, 1]  # 1 against 0: the second
        group.add(request(2), 1)
        assert places(group) == [2, 1]  # 1 against 4: the first
        group.add(request(3), 1)
        assert places(group) == [2, 2]  # 1 + 4 against 4

    def test_fewest_requests(self) -> None:
        """One request each, of which one waits: the first among equals."""
        group = ranks(choice="fewest_requests", places=1)
        group.add(request(0), 0)
        turn(group, 0)
        for number, expected in ((1, [1, 1]), (2, [2, 1]), (3, [2, 2])):
            group.add(request(number), 1)
            assert places(group) == expected

    def test_in_turn_whatever_they_have(self) -> None:
        group = ranks(3, "round_robin")
        for number in range(4):
            group.add(request(number), 0)
        assert places(group) == [2, 1, 1]
        group.drop_waiting(group.ranks[1].line.head() or request(9))
        group.add(request(4), 0)
        assert places(group) == [2, 1, 1]  # the turn of the second

    def test_nobody(self) -> None:
        with pytest.raises(InternalError, match="one attention rank at least"):
            LockstepScheduler([])


class TestSteps:
    def test_who_waits_for_whom(self) -> None:
        """A prompt of 40 takes three steps of 16, 16 and 8; the other rank decodes meanwhile.

        Short answers of 2 on the second rank: the prompt in the first step, one more token in the
        second. In the third it is idle, and takes part with nothing.
        """
        group = ranks()
        group.add(request(0, inputs=40, outputs=5), 0)
        group.add(request(1, inputs=4, outputs=2), 0)
        first, done = turn(group, 0)
        assert isinstance(first, Stretch)
        assert (first.max_steps, first.prefill_tokens, len(first.chunks)) == (1, 16 + 4, 2)
        assert (done, first.first_tokens) == ([], 1)
        second, done = turn(group, 1)
        assert (second.max_steps, second.prefill_tokens, second.decode_sequences) == (1, 16, 1)
        assert done == [1]
        third, done = turn(group, 2)
        assert (third.prefill_tokens, third.decode_sequences, third.first_tokens) == (8, 0, 1)
        assert done == []
        last, done = turn(group, 3)  # four more tokens, alone
        assert (last.max_steps, last.decode_sequences, last.context_tokens) == (4, 1, 40)
        assert done == [0]
        assert group.plan(7) is None
        assert group.pool.used_blocks == 0

    def test_a_stretch_lasts_until_the_batch_of_any_rank_changes(self) -> None:
        """Answers of 9 and 4: three steps together, then five of the first rank alone.

        Contexts of 4 at first: 4 + 4 before three steps and 7 before the other five. Blocks of 4
        tokens: at the end of the first stretch 7 tokens each, at the end of the second 12.
        """
        group = ranks()
        group.add(request(0, outputs=9), 0)
        group.add(request(1, outputs=4), 0)
        turn(group, 0)
        both, done = turn(group, 1)
        assert (both.max_steps, both.context_tokens, both.context_growing) == (3, 8, 2)
        assert (both.decoded_tokens, both.used_blocks, done) == (6, 2 + 2, [1])
        alone, done = turn(group, 4)
        assert (alone.max_steps, alone.context_tokens, alone.context_growing) == (5, 7, 1)
        assert (alone.decoded_tokens, alone.used_blocks, done) == (5, 3, [0])

    def test_a_stretch_that_was_cut_short_goes_on(self) -> None:
        """One that joins the second rank lets the decision of the first stand: 7 of 8 are left."""
        group = ranks()
        group.add(request(0, outputs=9), 0)
        group.add(request(1, outputs=9), 0)
        turn(group, 0)
        both, _ = turn(group, 1, steps=1)
        assert both.decoded_tokens == 2
        group.add(request(2, outputs=2), 2)  # one runs on each: the first rank
        assert places(group) == [2, 1]
        joined, _ = turn(group, 2)
        assert (joined.max_steps, joined.prefill_tokens, joined.context_tokens) == (1, 4, 5 + 5)
        last, done = turn(group, 3)  # 9 - 3 are left of the older ones, one of the youngest
        assert (last.max_steps, last.context_tokens, done) == (1, 6 + 6 + 4, [2])
        _, done = turn(group, 4)
        assert done == [0, 1]

    def test_a_rank_is_full_while_another_is_empty(self) -> None:
        """Preempted sequences stay on their rank: 5 blocks of 4 are too few for two of 9 to 12."""
        group = ranks(choice="round_robin", blocks=5)
        for number in (0, 1, 2):
            group.add(request(number, inputs=8 if number != 1 else 1, outputs=4), 0)
        tick, preempted = 0, [0, 0]
        finished: list[int] = []
        while group.outstanding_requests:
            _, done = turn(group, tick, steps=1)
            tick, finished = tick + 1, finished + done
            preempted = [
                max(old, len(each.line)) for old, each in zip(preempted, group.ranks, strict=True)
            ]
        # on the first rank both prompts hold 2 of the 5 blocks and need one more each: the later
        # one loses its own, though the second rank has room, and waits for three free ones
        assert preempted == [1, 0]
        assert finished == [0, 1, 2]
        assert tick == 4 + 3  # a prompt and three answers; nine tokens anew and two answers


class TestFromOutside:
    def test_what_leaves(self) -> None:
        group = ranks(places=1)
        requests = [request(number, outputs=9) for number in range(3)]
        for each in requests:
            group.add(each, 0)
        turn(group, 0)
        assert (group.outstanding_requests, group.waiting_requests) == (3, 1)
        assert group.drop_waiting(requests[2])
        assert not group.drop_waiting(requests[2])
        assert not group.drop_waiting(requests[0])  # it runs
        group.drop(requests[0])
        assert (places(group), group.pool.used_blocks) == ([0, 1], 1)
        left, _ = turn(group, 1)
        assert (left.decode_sequences, left.max_steps) == (1, 8)

    def test_a_crash_loses_all(self) -> None:
        group = ranks()
        requests = [request(number, outputs=9) for number in range(3)]
        for each in requests:
            group.add(each, 0)
        turn(group, 0)
        turn(group, 1, steps=2)
        assert {each.request_id for each in group.clear()} == {0, 1, 2}
        assert [each.computed_tokens for each in requests] == [4 + 2] * 3

    def test_kept_blocks_are_freed_where_they_are(self) -> None:
        group = ranks()
        kept = [request(number, inputs=8, outputs=1) for number in range(2)]
        for each in kept:
            each.keeps_blocks = True
            group.add(each, 0)
        turn(group, 0)
        assert (set(group.kept), group.pool.used_blocks) == (set(kept), 4)
        group.free_kept(kept[1])
        assert [each.pool.used_blocks for each in group.ranks] == [2, 0]


class TestWiring:
    def test_who_has_schedulers_of_their_own(self) -> None:
        vllm, even = ServingEngine(), ServingEngine(rank_choice="even")
        assert own_schedulers(vllm, Parallelism(tp=2, attention_dp=4)) == 4
        assert own_schedulers(vllm, Parallelism(tp=8)) == 1
        assert own_schedulers(even, Parallelism(tp=2, attention_dp=4)) == 1
        assert own_schedulers(vllm, Parallelism(tp=1, attention_dp=2, pp=2)) == 1
        assert own_schedulers(vllm, Parallelism(tp=1, attention_dp=2, cp=2)) == 1

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("vllm", "fewest_waiting"),
            ("vllm_0_21", "fewest_waiting"),
            ("sglang", "round_robin"),
            ("trtllm", "fewest_requests"),
            ("native", "even"),
        ],
    )
    def test_presets(self, name: str, expected: str) -> None:
        assert CATALOG.engine(name).settings["rank_choice"].value == expected

    def test_shared_batches_are_said_aloud(self, tmp_path: Path) -> None:
        staged = SCENARIO.replace("attention_dp: 2, ep: 2", "attention_dp: 2, ep: 2, pp: 2")
        for text, told in ((SCENARIO, False), (staged, True)):
            service = service_of(load_scenario(write(tmp_path, text)).cases[0], CATALOG)
            notes = [note for note in service.notes if "taken to be evenly filled" in note]
            assert bool(notes) is told


SCENARIO = """\
name: ranks
question: Who waits for whom?
system: h100_sxm_x8
model: gpt_oss_120b
parallelism: {tp: 1, attention_dp: 2, ep: 2}
precision: {weights: fp8, kv_cache: fp8}
replicas: 1
engine: {name: vllm}
workload:
  kind: closed_loop
  lengths: {kind: fixed, input_tokens: 1000, output_tokens: 50}
  requests: 8
  concurrency: 8
slo: {ttft_s: 1 s, tpot_s: 100 ms}
prices: {book: us_2026_11}
"""


def run(folder: Path, choice: str, *changes: tuple[str, str]) -> RunTables:
    text = SCENARIO.replace("{name: vllm}", f"{{name: vllm, rank_choice: {choice}}}")
    return forecast_of(write(folder, text, *changes))


def first_token_s(tables: RunTables) -> float:
    return float(tables.requests["ttft_s"].max())


class TestForecast:
    SEVEN = (("requests: 8", "requests: 7"), ("concurrency: 8", "concurrency: 7"))

    def test_equal_ranks_are_the_even_split(self, tmp_path: Path) -> None:
        """Four prompts of 1,000 on each rank; the even split adds 0.1 % for uneven contexts."""
        even, apart = (run(tmp_path, choice) for choice in ("even", "round_robin"))
        assert first_token_s(apart) == pytest.approx(first_token_s(even), rel=1e-6)
        tpot = [float(each.requests["tpot_s"].mean()) for each in (even, apart)]
        assert tpot[1] <= tpot[0] == pytest.approx(tpot[1], rel=0.002)

    def test_the_fullest_rank_sets_the_time(self, tmp_path: Path) -> None:
        """Seven prompts last as long as eight: one rank has four either way."""
        seven, eight = run(tmp_path, "round_robin", *self.SEVEN), run(tmp_path, "round_robin")
        assert first_token_s(seven) == pytest.approx(first_token_s(eight), rel=1e-6)
        assert first_token_s(run(tmp_path, "even", *self.SEVEN)) < 0.95 * first_token_s(seven)

    def test_a_long_prompt_on_one_rank_holds_up_all(self, tmp_path: Path) -> None:
        """4,096 tokens on one rank cost more than 2,048 on each, but less than 4,096 on each."""

        def ticks(*prompts: int) -> int:
            whole = LockstepStretch()
            for tokens in prompts:
                part = Stretch(0, 0, 0, 0, 0, 0)
                part.chunks = [(request(0, inputs=tokens), tokens)]
                part.prefill_tokens = tokens
                part.prefill_pairs = tokens * (tokens + 1) // 2
                whole.add(part)
            return pace.line(whole)[0]

        (pool,) = service_of(load_scenario(write(tmp_path, SCENARIO)).cases[0], CATALOG).pools
        pace = pool.plan.pace
        assert isinstance(pace, RankedPace)
        assert ticks(2048, 2048) < ticks(4095, 1) <= ticks(4096, 4096)
        assert ticks(4095, 1) == ticks(1, 4095)
