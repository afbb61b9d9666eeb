"""Tiers of keys and values, worked out on paper; blocks of four tokens, two bytes a token.

Links carry one byte a tick, so that a block takes eight ticks.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from small_clusters import port_of, replica_plan, run_open, sharing

from sim.catalog import Catalog, open_catalog
from sim.engine.cluster import Cluster, PoolPlan, RunRecord, TierPlan
from sim.engine.links import Link
from sim.engine.prefix import PrefixCache
from sim.engine.tiers import Load, Tier, Tiers
from sim.errors import InputError
from sim.kv_places import tiers_of
from sim.scenario import load_scenario
from sim.service import Service, service_of
from sim.simulate import simulate
from sim.workload.content import Content

SIZE = 4
BLOCK_BYTES = 8.0
BLOCK_TICKS = 8
A: Content = ((1, 0, 8),)
B: Content = ((2, 0, 8),)
C: Content = ((3, 0, 4),)


def link(bytes_per_tick: float = 1, latency_ticks: int = 0) -> Link:
    return port_of(bytes_per_tick, latency_ticks).build()


def tier(
    name: str = "host",
    blocks: int = 100,
    *,
    through: bool = True,
    read: Link | None = None,
    write: Link | None = None,
) -> Tier:
    """By default it is written at once, as far as the clock can tell."""
    cache = PrefixCache(blocks, SIZE)
    return Tier(name, cache, read or link(), write or link(1e9), BLOCK_BYTES, through)


@dataclass
class Places:
    """Tiers with a clock that a test sets."""

    tiers: Sequence[Tier]
    tick: int = 0
    all: Tiers = field(init=False)

    def __post_init__(self) -> None:
        self.all = Tiers(lambda: self.tick, self.tiers)

    def held(self, content: Content) -> list[int]:
        """Tokens of it in each tier."""
        return [tier.tokens(content, 1000) for tier in self.tiers]


class TestWhatIsWritten:
    def test_through_keeps_what_is_computed_in_whole_blocks(self) -> None:
        places = Places([tier()])
        places.all.computed(((1, 0, 11),))
        assert places.held(((1, 0, 11),)) == [8]
        assert places.all.tokens(((1, 0, 11),), 7) == 4

    def test_a_tier_written_through_does_not_hear_of_drops(self) -> None:
        places = Places([tier()])
        places.all.dropped(A)
        assert places.held(A) == [0]

    def test_one_written_on_eviction_hears_of_nothing_else(self) -> None:
        places = Places([tier(through=False)])
        places.all.computed(A)
        assert places.held(A) == [0]
        places.all.dropped(A)
        assert places.held(A) == [8]

    def test_every_tier_that_is_written_through_keeps_it(self) -> None:
        places = Places([tier("host"), tier("ssd", through=False), tier("store")])
        places.all.computed(A)
        assert places.held(A) == [8, 0, 8]

    def test_what_the_upper_tier_drops_goes_to_the_lower_one(self) -> None:
        """Two blocks of host memory: B pushes A out, C the tail of B.

        The SSD is told of A from its tail on, and of all eight tokens of B, since it holds no
        block without those before it.
        """
        places = Places([tier("host", 2, through=False), tier("ssd", through=False)])
        places.all.dropped(A)
        assert places.held(A) == [8, 0]
        places.all.dropped(B)
        assert (places.held(A), places.held(B)) == ([0, 8], [8, 0])
        places.all.dropped(C)
        assert (places.held(B), places.held(C)) == ([4, 8], [4, 0])

    def test_what_is_there_is_not_written_again(self) -> None:
        """Twelve tokens of which eight are there: one block, eight bytes, eight ticks."""
        write = link()
        places = Places([tier(write=write)])
        places.all.computed(A)
        assert write.free_tick == 2 * BLOCK_TICKS
        places.all.computed(A)
        assert write.free_tick == 2 * BLOCK_TICKS
        places.tick = 100
        places.all.computed(((1, 0, 12),))
        assert write.free_tick == 100 + BLOCK_TICKS

    def test_no_more_is_kept_than_fits(self) -> None:
        write = link()
        places = Places([tier(blocks=3, write=write)])
        places.all.computed(((1, 0, 40),))
        assert places.held(((1, 0, 40),)) == [12]
        assert write.free_tick == 3 * BLOCK_TICKS


class TestWhatIsDropped:
    def test_what_was_written_first_goes_first_from_its_tail(self) -> None:
        places = Places([tier(blocks=4)])
        for content in (A, B, C):
            places.all.computed(content)
        assert [places.held(content) for content in (A, B, C)] == [[4], [8], [4]]

    def test_asking_for_it_makes_it_young(self) -> None:
        places = Places([tier(blocks=4)])
        places.all.computed(A)
        places.all.computed(B)
        places.all.load(A, 0, 8)
        places.all.computed(C)
        assert [places.held(content) for content in (A, B, C)] == [[8], [4], [4]]

    def test_looking_does_not(self) -> None:
        places = Places([tier(blocks=4)])
        places.all.computed(A)
        places.all.computed(B)
        assert places.all.tokens(A, 8) == 8
        places.all.computed(C)
        assert places.held(A) == [4]

    def test_writing_it_again_makes_it_young(self) -> None:
        places = Places([tier(blocks=4)])
        for content in (A, B, A, C):
            places.all.computed(content)
        assert [places.held(content) for content in (A, B, C)] == [[8], [4], [4]]


class TestRuns:
    """What one sequence has in a tier is one run, however it came there: a look-up is one step."""

    def test_a_session_that_grows_turn_by_turn(self) -> None:
        host = tier(write=link())
        places = Places([host])
        for turn in range(1, 101):
            content: Content = ((1, 0, 5 * turn),)
            found = places.all.tokens(content, 5 * turn)
            if found:
                places.all.load(content, 0, found)
            places.all.computed(content)
            places.tick += 1000
        host.cache.check()
        assert places.held(((1, 0, 500),)) == [400]  # a hundred blocks: all that there is room for
        assert host.cache._nodes == 1

    def test_a_prompt_that_the_chips_drop_block_by_block(self) -> None:
        """Each drop tells of all tokens up to the block: 400, 396, ..., 4."""
        host = tier(through=False)
        chips = PrefixCache(100, SIZE)
        chips.on_evict = Places([host]).all.dropped
        content: Content = ((1, 0, 400),)
        holding = chips.hold(chips.match(content, 0))
        chips.take(100)
        chips.release(holding, content, 400, private_blocks=100)
        for _ in range(100):
            chips.take(1)
        host.cache.check()
        assert host.tokens(content, 400) == 400
        assert host.cache._nodes == 1


class TestLoads:
    def test_each_token_comes_from_the_nearest_tier_that_has_it(self) -> None:
        """Twelve tokens: one block is on the chips, host memory has two, the store all three.

        The store is asked for the third alone, and both send at the same time, the store at half
        the rate.
        """
        host, store = tier("host"), tier("store", read=link(0.5))
        host.keep(A, 0)
        store.keep(((1, 0, 12),), 0)
        places = Places([host, store], tick=100)
        assert places.all.tokens(((1, 0, 20),), 19) == 12
        assert places.all.load(((1, 0, 20),), 4, 12) == [
            Load("host", 100, 108, BLOCK_BYTES),
            Load("store", 100, 116, BLOCK_BYTES),
        ]

    def test_what_is_nearer_is_not_asked_for_farther_off(self) -> None:
        host, store = tier("host"), tier("store")
        host.keep(((1, 0, 12),), 0)
        store.keep(A, 0)
        (load,) = Places([host, store]).all.load(((1, 0, 12),), 0, 12)
        assert (load.tier, load.size_bytes) == ("host", 3 * BLOCK_BYTES)

    def test_loads_over_one_link_wait_for_each_other(self) -> None:
        """Two of 16 bytes asked for at 100 and at 105; a third when the link is free again."""
        places = Places([tier()], tick=0)
        for content in (A, B):
            places.all.computed(content)
        times = []
        for tick, content in ((100, A), (105, B), (200, A)):
            places.tick = tick
            times += [(load.start_tick, load.end_tick) for load in places.all.load(content, 0, 8)]
        assert times == [(100, 116), (116, 132), (200, 216)]

    def test_latency_is_no_time_of_the_link(self) -> None:
        places = Places([tier(read=link(1, latency_ticks=50))])
        places.all.computed(A)
        times = [places.all.load(A, 0, 8)[0][1:3] for _ in range(2)]
        assert times == [(0, 66), (16, 82)]

    def test_replicas_share_a_store_and_not_their_host_memory(self) -> None:
        """What one computes the other finds in the store, and they wait for each other there."""
        store = tier("store")
        one, other = Places([tier("host"), store]), Places([tier("host"), store])
        one.all.computed(A)
        assert (one.held(A), other.held(A)) == ([8, 8], [0, 8])
        assert one.all.load(A, 0, 8) == [Load("host", 0, 16, 16.0)]
        assert other.all.load(A, 0, 8) == [Load("store", 0, 16, 16.0)]
        one.all.computed(B)
        assert other.all.load(B, 0, 8) == [Load("store", 16, 32, 16.0)]


class TestWritingTakesTime:
    def test_what_is_being_written_is_waited_for(self) -> None:
        """Written from 0 to 16; asked for at 10, it is sent from 16 to 32."""
        places = Places([tier(write=link())])
        places.all.computed(A)
        places.tick = 10
        assert places.all.load(A, 0, 8) == [Load("host", 16, 32, 16.0)]

    def test_what_was_written_before_is_not(self) -> None:
        """A is there at 16, B behind it at 32. At 20 A is sent at once; B comes when it is there.

        The link is held from 20 to 36 for A and would be free for B at 36: later than 32.
        """
        places = Places([tier(write=link())])
        places.all.computed(A)
        places.all.computed(B)
        places.tick = 20
        assert places.all.load(A, 0, 8) == [Load("host", 20, 36, 16.0)]
        assert places.all.load(B, 0, 8) == [Load("host", 36, 52, 16.0)]

    def test_the_head_of_a_longer_prompt_is_there_before_its_tail(self) -> None:
        """The first eight tokens are there at 16. Four more, computed at 100, at 108."""
        places = Places([tier(write=link())])
        places.all.computed(A)
        places.tick = 100
        places.all.computed(((1, 0, 12),))
        assert places.all.load(A, 0, 8) == [Load("host", 100, 116, 16.0)]
        places.tick = 101
        longer = places.all.load(((1, 0, 12),), 8, 12)
        # its turn on the link would be at 116, when it has long been written
        assert longer == [Load("host", 116, 124, 8.0)]

    def test_who_waits_does_not_hold_the_others_up(self) -> None:
        """B is being written until 1,000 + 16; A, asked for after it, does not wait for that."""
        write = link()
        places = Places([tier(write=write)])
        places.all.computed(A)
        places.tick = 1000
        places.all.computed(B)
        assert places.all.load(B, 0, 8) == [Load("host", 1016, 1032, 16.0)]
        assert places.all.load(A, 0, 8) == [Load("host", 1016, 1032, 16.0)]

    def test_what_is_written_on_eviction_is_there_at_once(self) -> None:
        places = Places([tier(through=False, write=link())])
        places.all.dropped(A)
        assert places.all.load(A, 0, 8) == [Load("host", 0, 16, 16.0)]


class TestOnACluster:
    """Steps of ten ticks, one replica after the other; a token of context is two bytes."""

    def run(
        self,
        contents: Sequence[tuple[int, Content]],
        *tiers: TierPlan,
        replicas: int = 1,
        blocks: int = 4,
    ) -> RunRecord:
        plan = replica_plan(
            blocks=blocks, block_tokens=SIZE, prefix_caching=True, kv_bytes_per_token=2.0
        )
        requests = [sharing(number, content, 1) for number, (_, content) in enumerate(contents)]
        for request, (tick, _) in zip(requests, contents, strict=True):
            request.arrival_tick = tick
        return run_open(Cluster([PoolPlan("serve", replicas, plan, tiers=tiers)]), requests)

    def plan(self, *, blocks: int = 100, through: bool = True, shared: bool = False) -> TierPlan:
        wire = port_of(1)
        return TierPlan("host", blocks, BLOCK_BYTES, wire, wire, shared, through)

    def rows(self, record: RunRecord) -> list[tuple[object, ...]]:
        names = ("kind", "request_id", "source", "replica", "asked_s", "start_s", "end_s", "bytes")
        frame = pd.DataFrame(record.transfers)
        for name in ("asked_s", "start_s", "end_s"):
            frame[name] = (frame[name] * 1e15).round().astype(int)
        return [tuple(row) for row in frame[list(names)].itertuples(index=False)]

    @pytest.mark.parametrize("through", [True, False])
    def test_a_prompt_that_the_chips_have_dropped_comes_back_from_host_memory(
        self, through: bool
    ) -> None:
        """Four blocks on the chips. The prompt of 12 tokens is done at 10, another of 16 pushes it
        out and is done at 110. Sent again at 200 it finds 8 tokens below its last one: 16 bytes
        come from 200 to 216; the step that computes the other four ends at 226.
        """
        one: Content = ((1, 0, 12),)
        record = self.run([(0, one), (100, ((2, 0, 16),)), (200, one)], self.plan(through=through))
        assert self.rows(record) == [("load", 2, "host", 0, 200, 200, 216, 16.0)]
        requests = pd.DataFrame(record.requests).set_index("request_id")
        assert requests["cached_tokens"].tolist() == [0, 0, 8]
        assert (requests["done_s"] * 1e15).round().tolist() == [10, 110, 226]
        assert (requests["transfer_s"] * 1e15).round().tolist() == [0, 0, 16]

    def test_what_the_chips_still_have_is_not_loaded(self) -> None:
        """Of 12 tokens the chips have lost all but the first block, whose head goes last.

        Four blocks, 12 tokens of one prompt in three of them: the next of eight tokens takes the
        free one and the tail. Then the first block and the second are on the chips: nothing moves.
        """
        one: Content = ((1, 0, 12),)
        record = self.run([(0, one), (100, B), (200, one)], self.plan())
        assert self.rows(record) == []
        assert record.requests["cached_tokens"].tolist() == [0, 0, 8]

    def test_half_from_the_chips_and_half_from_the_host(self) -> None:
        """The next prompt of 12 tokens takes the free block, the tail and the middle."""
        one: Content = ((1, 0, 12),)
        record = self.run([(0, one), (100, ((2, 0, 12),)), (200, one)], self.plan())
        assert self.rows(record) == [("load", 2, "host", 0, 200, 200, 208, 8.0)]
        assert record.requests["cached_tokens"].tolist() == [0, 0, 8]

    def test_nobody_uses_what_is_still_on_its_way(self) -> None:
        """Two equal prompts at 200, which the chips have dropped: each fetches its 16 bytes.

        They have come at 216 and at 232; each is done a step later.
        """
        one: Content = ((1, 0, 12),)
        contents = [(0, one), (100, ((2, 0, 36),)), (200, one), (200, one)]
        record = self.run(contents, self.plan(), blocks=9)
        assert [row[1:7] for row in self.rows(record)] == [
            (2, "host", 0, 200, 200, 216),
            (3, "host", 0, 200, 216, 232),
        ]
        done = pd.Series(record.requests["done_s"], record.requests["request_id"])
        assert (done * 1e15).round().loc[[2, 3]].tolist() == [226, 242]

    def test_replicas_find_each_others_prompts_in_a_shared_store_alone(self) -> None:
        """Two replicas in turn: the second request goes to the other one."""
        contents = [(0, A), (100, A)]
        for shared, cached in ((True, 4), (False, 0)):
            record = self.run(contents, self.plan(shared=shared), replicas=2)
            assert record.requests["cached_tokens"].tolist() == [0, cached]
            assert len(self.rows(record)) == shared

    def test_two_replicas_wait_for_each_other_at_the_store(self) -> None:
        """Both ask at 200 for eight tokens of a prompt that a third has computed: 16 bytes each."""
        one: Content = ((1, 0, 12),)
        contents = [(0, one), (200, one), (200, one)]
        record = self.run(contents, self.plan(shared=True), replicas=3)
        assert self.rows(record) == [
            ("load", 1, "host", 1, 200, 200, 216, 16.0),
            ("load", 2, "host", 2, 200, 216, 232, 16.0),
        ]


SCENARIO = """
name: tiers
question: Where are prompts found again?
model: llama_3_1_8b
system: h100_sxm_x8
precision: {weights: bf16, kv_cache: bf16, attention: bf16}
parallelism: {tp: 1}
workload:
  kind: closed_loop
  concurrency: 1
  requests: 80
  lengths: {kind: uniform_range, input_tokens: 300, output_tokens: 20, low_fraction: 0.2}
  sharing: {prefixes: 6, tokens: {kind: constant, tokens: 1000}, within_prompt: false}
slo: {ttft_s: 1 s, tpot_s: 100 ms}
prices: {book: us_2026_11}
"""
ENGINE = "engine: {name: vllm, kv_blocks: 150, kv_tiers: [%s]}\n"
HOST = (
    "{name: host, capacity_bytes: 400 MiB, read_bytes_per_s: 50 GB/s, write_bytes_per_s: 50 GB/s,"
    " write: on_eviction}"
)
STORE = (
    "{name: store, capacity_bytes: 4 GiB, read_bytes_per_s: 5 GB/s, write_bytes_per_s: 5 GB/s,"
    " latency_s: 1 ms, shared: true}"
)
KV_BYTES_PER_TOKEN = 2 * 32 * 8 * 128 * 2
"""Of Llama 3.1 8B: keys and values, 32 layers, 8 heads of 128 values, 2 bytes each."""


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return open_catalog()


def service(folder: Path, catalog: Catalog, engine: str) -> Service:
    path = folder / "tiers.yaml"
    path.write_text(SCENARIO + engine, encoding="utf-8")
    (case,) = load_scenario(path).cases
    return service_of(case, catalog)


class TestOfAScenario:
    @pytest.mark.parametrize("tiers", [HOST, STORE, f"{HOST}, {STORE}"])
    def test_every_prompt_token_is_found_moved_or_computed(
        self, tiers: str, tmp_path: Path, catalog: Catalog
    ) -> None:
        """Nobody is preempted, so what steps compute is what was not found anywhere.

        What moved is a part of what was found, and the rest of that, which the chips had, is whole
        blocks as well.
        """
        record = simulate(service(tmp_path, catalog, ENGINE % tiers), catalog, 1).record
        requests = pd.DataFrame(record.requests).set_index("request_id")
        transfers = pd.DataFrame(record.transfers)
        assert set(transfers["kind"]) == {"load"}
        assert set(transfers["source"]) == {name for name in ("host", "store") if name in tiers}
        moved = transfers.groupby("request_id")["bytes"].sum() / KV_BYTES_PER_TOKEN
        on_chips = requests["cached_tokens"].sub(moved, fill_value=0)
        assert (on_chips >= 0).all()
        assert (on_chips % 16 == 0).all()
        assert on_chips.sum() > 0
        assert len(moved) > 10
        missing = (requests["input_tokens"] - requests["cached_tokens"]).sum()
        steps = pd.DataFrame(record.stretches)
        assert (steps["prefill_tokens"] * steps["steps"]).sum() == missing
        # the bytes are as long on their way as the slower link takes, at least
        assert requests["transfer_s"].sum() >= moved.max() * KV_BYTES_PER_TOKEN / 50e9

    def test_bytes_are_those_of_all_chips_of_a_replica(
        self, tmp_path: Path, catalog: Catalog
    ) -> None:
        """A block of 16 tokens of this model: 131,072 bytes a token, 2 MiB a block, 200 in all."""
        (plan,) = tiers_of(service(tmp_path, catalog, ENGINE % HOST).pools[0])
        assert (plan.block_bytes, plan.capacity_blocks) == (16 * KV_BYTES_PER_TOKEN, 200)
        assert (plan.read.bandwidth_bytes_per_s, plan.through, plan.shared) == (50e9, False, False)

    @pytest.mark.parametrize(
        ("tiers", "complaint"),
        [
            (HOST.replace("400 MiB", "1 MiB"), "bytes of host are less than one KV block"),
            (f"{STORE}, {HOST}", "host would be written with what store drops.*put store after it"),
        ],
    )
    def test_tiers_that_cannot_work_are_refused(
        self, tiers: str, complaint: str, tmp_path: Path, catalog: Catalog
    ) -> None:
        pool = service(tmp_path, catalog, ENGINE % tiers).pools[0]
        with pytest.raises(InputError, match=complaint):
            tiers_of(pool)


ROOT = Path(__file__).resolve().parents[2]


def test_the_example_that_is_worked_by_hand_is_that_of_the_code(catalog: Catalog) -> None:
    """600 prompts with one of twenty templates of 2,000 tokens, on two replicas.

    Each replica computes each template once, or one of the two does; what the chips drop comes
    back from host memory, so that nothing is computed twice there either.
    """
    page = (ROOT / "docs" / "explanation" / "prefix-caching.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-z -]+) \| ([\d,]+) \|", page, re.M))
    cases = {
        case.name: case
        for case in load_scenario(ROOT / "scenarios" / "serving" / "prefix_caching.yaml").cases
    }
    expected = {
        "cache": (600 - 2 * 20) * 2000,
        "cache and a prefix-aware router": (600 - 20) * 2000,
        "small cache above host memory": (600 - 2 * 20) * 2000,
    }
    assert {name: int(number.replace(",", "")) for name, number in rows.items()} == expected
    for name, tokens in expected.items():
        record = simulate(service_of(cases[name], catalog), catalog, 1).record
        # by chance of the arrivals a template may never come to one of the two replicas
        assert 0 <= record.requests["cached_tokens"].sum() - tokens <= 2 * 2000
    moved_bytes = record.transfers["bytes"].sum()
    told = re.search(
        r"([\d,]+) of the tokens came from host memory.*?that is ([\d.]+) s", page, re.S
    )
    assert told is not None
    # what moves depends on who waits for whom, so it shifts with every fit of an engine's overhead
    tokens = int(told[1].replace(",", ""))
    assert tokens == pytest.approx(moved_bytes / KV_BYTES_PER_TOKEN, rel=0.1)
    waited_s = record.requests["transfer_s"].sum()
    assert waited_s == pytest.approx(moved_bytes / 51e9, rel=1e-6)
    # the page's seconds are those of the page's tokens, to its three digits
    assert float(told[2]) == pytest.approx(tokens * KV_BYTES_PER_TOKEN / 51e9, rel=3e-3)
