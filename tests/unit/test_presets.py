"""Presets of engines: complete, sourced, and filled in as the engines do when they start."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import open_catalog
from sim.cost.memory import EngineShare, doubt_about_blocks, engine_share, memory_use
from sim.errors import InfeasibleError, InputError
from sim.parallelism import Parallelism
from sim.precision import Precision
from sim.presets import (
    PRESET_SETTINGS,
    EnginePreset,
    Place,
    place_of,
    resolved,
    sglang_static_fraction,
)
from sim.schema import load_yaml, validate
from sim.serving import KvTier, ServingEngine

CATALOG = open_catalog()
IDS = CATALOG.names("engines")
GIB = 2.0**30
MIB = 2.0**20
H100 = Place("h100_sxm", "hopper", 80 * GIB, tp=1, chips=1)
A100 = Place("a100_sxm", "ampere", 80 * GIB, tp=1, chips=1)
L40S = Place("l40s", "ada", 45 * GIB, tp=1, chips=1)
B200 = Place("b200_sxm", "blackwell", 180 * GIB, tp=1, chips=1)
PLACES = (H100, A100, L40S, B200)
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "engines.md"


def on(place: Place, **settings: Any) -> ServingEngine:
    engine = ServingEngine.model_validate(settings)
    return resolved(engine, CATALOG.engine(engine.name), place)


class TestFiles:
    @pytest.mark.parametrize("entry", IDS)
    def test_every_setting_has_a_value_and_a_source(self, entry: str) -> None:
        settings = CATALOG.engine(entry).settings
        assert set(settings) == set(PRESET_SETTINGS)
        for key, setting in settings.items():
            assert len(setting.source) > 10, key

    @pytest.mark.parametrize("entry", IDS)
    @pytest.mark.parametrize("place", PLACES, ids=lambda place: place.accelerator_id)
    def test_a_preset_alone_can_run(self, entry: str, place: Place) -> None:
        engine = on(place, name=entry)
        assert engine.model_fields_set == set(ServingEngine.model_fields)
        assert resolved(engine, CATALOG.engine(entry), place) == engine

    def test_a_missing_setting_is_an_error(self, tmp_path: Path) -> None:
        text = CATALOG.path("engines", "vllm").read_text(encoding="utf-8")
        path = tmp_path / "mine.yaml"
        path.write_text(text.replace("  block_tokens:", "  block_token:"), encoding="utf-8")
        with pytest.raises(InputError, match="settings has no block_tokens; block_token is no"):
            validate(EnginePreset, load_yaml(path))

    def test_a_value_that_no_scenario_could_have_is_an_error(self, tmp_path: Path) -> None:
        text = CATALOG.path("engines", "vllm").read_text(encoding="utf-8")
        path = tmp_path / "mine.yaml"
        path.write_text(text.replace("value: as_needed", "value: as_wanted"), encoding="utf-8")
        with pytest.raises(InputError, match="admission: 'as_wanted'"):
            validate(EnginePreset, load_yaml(path))

    def test_an_unknown_preset_is_an_error(self) -> None:
        with pytest.raises(InputError, match="unknown engine 'vlm'; did you mean vllm"):
            CATALOG.engine("vlm")

    def test_the_values_of_the_reference_are_those_of_the_files(self) -> None:
        text = REFERENCE.read_text(encoding="utf-8").split("<!-- presets -->")[1]
        lines = text.strip().split("\n\n")[0].splitlines()
        head, _, *rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines]
        assert sorted(row[0] for row in rows) == sorted(PRESET_SETTINGS)
        for key, *cells in rows:
            for entry, cell in zip(head[1:], cells, strict=True):
                setting = CATALOG.engine(entry).settings[key]
                assert cell.endswith("*") == bool(setting.where), (key, entry)
                assert cell.rstrip(" *") == in_words(setting.value, setting.rule), (key, entry)


def in_words(value: Any, rule: str | None) -> str:
    if rule:
        return "computed"
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return str(value[0]) if len(value) == 1 else f"{value[0]} to {value[-1]}"
    if isinstance(value, dict):
        return f"{value['initial_fraction']} to {value['least_fraction']}"
    return str(value)


class TestVllm:
    def test_limits_follow_the_chip_as_get_batch_defaults_has_them(self) -> None:
        limits = {
            place.accelerator_id: (engine.max_num_seqs, engine.max_num_batched_tokens)
            for place in PLACES
            for engine in [on(place)]
        }
        assert limits == {
            "h100_sxm": (1024, 8192),
            "a100_sxm": (256, 2048),  # by name, though it has 80 GiB
            "l40s": (256, 2048),
            "b200_sxm": (1024, 8192),
        }

    def test_what_is_written_wins(self) -> None:
        engine = on(A100, max_num_seqs=512, whole_prompt_must_fit=False)
        assert (engine.max_num_seqs, engine.whole_prompt_must_fit) == (512, False)
        assert engine.max_num_batched_tokens == 2048

    def test_a_small_budget_lowers_the_default_number_of_sequences(self) -> None:
        assert on(H100, max_num_batched_tokens=512).max_num_seqs == 512

    def test_graphs_are_those_of_set_cudagraph_sizes(self) -> None:
        """1, 2, 4, then every 8 to 248, then every 16: 3 + 31 + 17 = 51 sizes up to 512."""
        sizes = on(H100).graph_sizes
        assert len(sizes) == 51
        assert sizes[:5] == (1, 2, 4, 8, 16)
        assert sizes[-2:] == (496, 512)
        assert on(B200).graph_sizes[-1] == 1024
        assert on(H100, max_num_seqs=6).graph_sizes == (1, 2, 4, 8)  # up to 2 x 6

    def test_drafting_takes_larger_graphs(self) -> None:
        """With five draft tokens up to 6 x 6 x 2 = 72, and 72 is a size."""
        drafts = {
            "method": "mtp",
            "draft_tokens": 5,
            "acceptance_per_position": [0.8, 0.7, 0.6, 0.5, 0.4],
        }
        assert on(H100, max_num_seqs=6, speculation=drafts).graph_sizes[-1] == 72

    def test_older_versions_decide_between_steps(self) -> None:
        now, before = on(H100), on(H100, name="vllm_0_11")
        assert (now.steps_ahead, before.steps_ahead) == (1, 0)
        assert (now.whole_prompt_must_fit, before.whole_prompt_must_fit) == (True, False)


class TestSglang:
    def test_the_share_by_hand(self) -> None:
        """512 + 1.5 x 8192 + 2 x 256 + 128 = 13,440 MiB of 81,920 stay free."""
        engine = on(H100, name="sglang")
        assert engine.memory_fraction == round((81_920 - 13_440) / 81_920, 3)

    def test_ten_gib_at_least_stay_free_on_large_chips(self) -> None:
        """512 + 1.5 x 2048 + 2 x 8 + 128 = 3,728 MiB are below 10 GiB."""
        engine = ServingEngine(name="sglang", max_num_batched_tokens=2048, graph_sizes=(1, 8))
        assert sglang_static_fraction(engine, H100) == round((81_920 - 10_240) / 81_920, 3)
        small = Place("l40s", "ada", 45 * GIB, tp=1, chips=1)
        assert sglang_static_fraction(engine, small) == round((46_080 - 3_728) / 46_080, 3)

    def test_a_share_that_is_written_wins(self) -> None:
        assert on(H100, name="sglang", memory_fraction=0.5).memory_fraction == 0.5

    def test_chunks_follow_the_memory(self) -> None:
        found = [on(place, name="sglang").max_num_batched_tokens for place in (L40S, H100, B200)]
        assert found == [4096, 8192, 16384]

    def test_graphs_follow_the_tensor_ranks(self) -> None:
        wide = H100._replace(tp=8, chips=8)
        assert [on(place, name="sglang").graph_sizes[-1] for place in (H100, wide)] == [256, 512]

    def test_a_chip_that_is_too_small_is_refused(self) -> None:
        tiny = Place("toy", "ada", 2 * GIB, tp=1, chips=1)
        with pytest.raises(InfeasibleError, match="lower max_num_batched_tokens"):
            on(tiny, name="sglang")


class TestBuckets:
    def test_they_end_at_the_limits(self) -> None:
        engine = on(L40S, name="neuron", max_num_seqs=24, max_num_batched_tokens=3000)
        assert engine.decode_buckets == (1, 2, 4, 8, 16, 24)
        assert engine.prefill_buckets == (128, 256, 512, 1024, 2048, 3000)

    def test_every_slot_of_jetstream_is_computed(self) -> None:
        assert on(L40S, name="jetstream", max_num_seqs=32).decode_buckets == (32,)

    @given(st.integers(1, 2000), st.integers(2000, 9000))
    def test_they_cover_whatever_the_limits_are(self, seqs: int, budget: int) -> None:
        engine = on(H100, name="vllm_tpu", max_num_seqs=seqs, max_num_batched_tokens=budget)
        assert engine.decode_buckets[-1] == seqs
        assert engine.prefill_buckets[-1] == budget
        for sizes in (engine.decode_buckets, engine.prefill_buckets):
            assert list(sizes) == sorted(set(sizes))


TIER = KvTier(name="host", capacity_bytes=1e9, read_bytes_per_s=1e9, write_bytes_per_s=1e9)


class TestRefused:
    @pytest.mark.parametrize(
        ("settings", "problem"),
        [
            ({"composition": "mixed", "max_num_seqs": 64, "max_num_batched_tokens": 32}, "lower"),
            ({"admission": "no_evict", "preemption": "swap", "swap_bytes": 1e9}, "never preempts"),
            ({"admission": "estimated"}, "needs answer_estimate"),
            ({"preemption": "swap"}, "needs swap_bytes > 0"),
            ({"chunked_prefill": False, "max_chunk_tokens": 512}, "drop one"),
            ({"decode_buckets": (8, 16), "graph_sizes": ()}, "add 1024 to them or"),
            ({"prefill_buckets": (128,)}, "add 8192 to them or set max_num_batched_tokens: 128"),
            ({"decode_buckets": (1024,)}, "not both"),
            ({"kv_tiers": (TIER,), "prefix_caching": False}, "never finds"),
            ({"kv_tiers": (TIER, TIER)}, "same name"),
            ({"kv_blocks": 1}, "never given out"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_with_a_way_out(self, settings: dict[str, Any], problem: str) -> None:
        engine = ServingEngine(name="vllm_0_11").model_copy(update=settings)
        with pytest.raises(InputError, match=re.escape(problem)):
            resolved(engine, CATALOG.engine("vllm_0_11"), H100)


class TestMemory:
    MODEL = CATALOG.model("llama_3_1_8b")
    CHIP = CATALOG.accelerator("h100_sxm")

    def cache_bytes(self, share: EngineShare) -> float:
        bf16 = Precision(weights="bf16", kv_cache="bf16")
        return memory_use(self.MODEL, Parallelism(tp=1), bf16, self.CHIP, share).kv_bytes

    def test_the_same_share_of_three_things(self) -> None:
        """All differ by what a tenth of which part of the memory is."""
        base = EngineShare(0.9, 1 * GIB, 8192, 1024)
        capacity = self.CHIP.local_memory.capacity_bytes.value
        total, static, free = (
            self.cache_bytes(EngineShare(0.9, 1 * GIB, 8192, 1024, fraction_of=of))
            for of in ("total", "static", "free")
        )
        bf16 = Precision(weights="bf16", kv_cache="bf16")
        use = memory_use(self.MODEL, Parallelism(tp=1), bf16, self.CHIP, base)
        inside = use.weights_bytes + use.activations_bytes + GIB
        assert total == pytest.approx(0.9 * capacity - inside)
        assert static == pytest.approx(0.9 * (capacity - GIB) - use.weights_bytes)
        assert free == pytest.approx(0.9 * (capacity - inside))

    def test_graphs_are_paid_by_the_cache(self) -> None:
        plain = engine_share(on(H100), Parallelism(tp=1))
        paid = engine_share(on(H100, graph_bytes=2 * GIB), Parallelism(tp=1))
        assert self.cache_bytes(plain) - self.cache_bytes(paid) == pytest.approx(2 * GIB)

    def test_a_number_of_blocks_that_memory_does_not_hold_is_doubted(self) -> None:
        bf16 = Precision(weights="bf16", kv_cache="bf16")
        share = engine_share(on(H100), Parallelism(tp=1))
        use = memory_use(self.MODEL, Parallelism(tp=1), bf16, self.CHIP, share)
        counted = use.kv_blocks(16)
        assert use.blocks(16, given=27).total == 27
        assert doubt_about_blocks(use, 16, counted) is None
        assert "suggests" in str(doubt_about_blocks(use, 16, counted // 2))
        assert "the weights leave" in str(doubt_about_blocks(use, 16, 3 * counted))


def test_the_place_is_read_from_the_chip_and_the_split() -> None:
    chip = CATALOG.accelerator("h100_sxm")
    place = place_of("h100_sxm", chip, Parallelism(tp=4, pp=2))
    assert place == ("h100_sxm", "hopper", chip.local_memory.capacity_bytes.value, 4, 8)
    assert place.memory_bytes > 70 * GIB > 60_000 * MIB
