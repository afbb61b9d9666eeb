"""How one chip's memory is divided, by hand."""

import pocket_chip
import pytest

from sim.catalog import open_catalog
from sim.cost.memory import (
    NO_DETOUR,
    SAMPLER_COPIES,
    CacheUse,
    EngineShare,
    MemoryUse,
    activation_bytes,
    cache_use,
    detour,
    engine_bytes,
    memory_use,
    slower_tiers,
)
from sim.hardware import MemoryTier
from sim.parallelism import Parallelism
from sim.precision import Precision
from sim.units import GIB

CATALOG = open_catalog()
FP8 = Precision(weights="fp8", kv_cache="fp8")


def share(*, tokens: int = 8192, seqs: int = 256) -> EngineShare:
    return EngineShare(0.9, 2e9, max_num_batched_tokens=tokens, max_num_seqs=seqs)


def test_what_is_left_goes_to_keys_and_values() -> None:
    model = CATALOG.model("llama_3_1_70b")
    use = memory_use(model, Parallelism(tp=8), FP8, pocket_chip.CHIP, share())
    # an eighth of 80 layers in FP8 and of two 16-bit vocabulary matrices
    weights = (80 * (8192 * 10240 + 8192 * 8192 + 3 * 8192 * 28672) + 4 * 128256 * 8192) / 8
    assert use.weights_bytes == weights
    assert use.budget_bytes == 0.9 * 100e9
    assert use.kv_bytes == pytest.approx(90e9 - weights - 2e9 - use.activations_bytes)
    # one KV head a chip: key and value of 128 bytes in each of 80 layers
    assert use.kv_bytes_per_token == 80 * 2 * 128
    assert use.kv_blocks(16) == int(use.kv_bytes / (80 * 2 * 128 * 16))


def test_a_model_that_does_not_fit_has_no_blocks() -> None:
    use = MemoryUse(80e9, 72e9, 100e9, 1e9, 1e9, CacheUse(1000.0))
    assert use.kv_bytes < 0
    assert use.kv_blocks(16) == 0


@pytest.mark.parametrize(
    ("model_id", "tp", "per_token"),
    [
        ("llama_3_1_70b", 1, 80 * 2 * 8 * 128),
        ("llama_3_1_70b", 16, 80 * 2 * 1 * 128),  # a head is not cut: copied on two ranks
        ("deepseek_r1", 1, 61 * 576),
        ("deepseek_r1", 8, 61 * 576),  # every rank keeps the whole latent
    ],
)
def test_cached_bytes_of_a_token(model_id: str, tp: int, per_token: int) -> None:
    model = CATALOG.model(model_id)
    use = memory_use(model, Parallelism(tp=tp), FP8, pocket_chip.CHIP, share())
    assert use.kv_bytes_per_token == per_token


class TestActivations:
    def test_few_sequences_leave_the_forward_pass_as_the_peak(self) -> None:
        model = CATALOG.model("llama_3_1_70b")
        peak = activation_bytes(model, Parallelism(tp=8), share(seqs=16))
        # 8192 tokens, four vectors of 8192 and three of 28672 / 8, in 16 bits
        assert peak == 8192 * (4 * 8192 + 3 * 3584) * 2

    def test_many_sequences_make_it_the_sampler(self) -> None:
        model = CATALOG.model("llama_3_1_70b")
        peak = activation_bytes(model, Parallelism(tp=8), share(seqs=1024))
        logits = 1024 * 128256 * 4
        assert peak == pytest.approx(8192 * 8192 * 2 + SAMPLER_COPIES * logits)

    @pytest.mark.parametrize(("tp", "dp", "ep"), [(8, 1, 1), (8, 1, 8), (1, 8, 8)])
    def test_expert_workspace(self, tp: int, dp: int, ep: int) -> None:
        model = CATALOG.model("deepseek_r1")
        split = Parallelism(tp=tp, attention_dp=dp, ep=ep)
        with_experts = activation_bytes(model, split, share(seqs=1))
        without = activation_bytes(model.model_copy(update={"moe": None}), split, share(seqs=1))
        # eight picks of each of 8192 tokens; cut experts see all of them with 256 of 2048 inner
        # columns, dealt ones see an eighth of them whole; the output of 7168 is the widest
        # of eight attention ranks, eight times as many tokens meet
        picks, inner = (65_536, 256) if ep == 1 else (8192 * dp, 2048)
        assert with_experts - without == picks * (7168 + inner) * 2

    def test_do_not_shrink_with_more_tokens_or_sequences(self) -> None:
        model = CATALOG.model("mixtral_8x7b")
        sizes = [
            activation_bytes(model, Parallelism(tp=2), share(tokens=tokens, seqs=seqs))
            for tokens, seqs in ((2048, 256), (8192, 256), (8192, 1024), (16384, 1024))
        ]
        assert sizes == sorted(sizes)
        assert len(set(sizes)) == 4


def test_joined_chips_hold_buffers_for_each_other() -> None:
    alone, joined = (engine_bytes(Parallelism(tp=tp)) for tp in (1, 2))
    assert alone < 0.5 * GIB < joined
    assert joined == engine_bytes(Parallelism(tp=8))


class TestOneSequence:
    """What a sequence takes of a chip: bytes per token, in its window, and whatever it does."""

    def test_a_stage_stores_its_own_layers(self) -> None:
        model = CATALOG.model("deepseek_r1")  # 61 layers: sixteen of them in the largest of four
        use = cache_use(model, Parallelism(tp=1, pp=4), FP8)
        assert use.growing_bytes == pytest.approx(16 * 576)

    def test_windows_are_held_apart(self) -> None:
        # gpt-oss-120b: 18 layers of 36 see 128 tokens; 8 KV heads of 64, keys and values in FP8
        use = cache_use(CATALOG.model("gpt_oss_120b"), Parallelism(tp=1), FP8)
        assert use == CacheUse(18 * 1024, 18 * 1024, 128, 0.0)
        blocks = MemoryUse(1e9, 1e9, 0.0, 0.0, 0.0, use).blocks(16)
        # one block of 16 tokens in 18 layers, for either kind of layer
        assert (blocks.block_bytes, blocks.growing, blocks.windowed) == (16 * 18 * 1024, 1, 1)
        assert blocks.total == int(1e9 // (16 * 18 * 1024))

    def test_states_take_whole_blocks(self) -> None:
        use = MemoryUse(1000.0, 1000.0, 0.0, 0.0, 0.0, CacheUse(10.0, 0.0, None, 101.0))
        # a block of two tokens is 20 bytes; 101 bytes of state are six of them
        assert use.blocks(block_tokens=2)[:1] + use.blocks(2)[2:] == (50, 1, 0, 6)

    def test_a_model_of_states_alone_counts_states(self) -> None:
        use = MemoryUse(1000.0, 1000.0, 0.0, 0.0, 0.0, CacheUse(0.0, 0.0, None, 90.0))
        assert use.blocks(block_tokens=16) == (11, 90.0, 0, 0, 1)

    def test_a_share_of_a_stage_has_a_common_measure_too(self) -> None:
        third = 1 / 3
        use = MemoryUse(1e6, 1e6, 0.0, 0.0, 0.0, CacheUse(52 * third, 10 * third, 1024))
        blocks = use.blocks(block_tokens=16)
        assert (blocks.growing, blocks.windowed) == (26, 5)
        assert blocks.block_bytes == pytest.approx(16 * 2 * third)


def tier(gigabytes: float, gigabytes_per_s: float) -> MemoryTier:
    return MemoryTier(
        kind="by hand",
        capacity_bytes=pocket_chip.figure(gigabytes * 1e9),
        bandwidth_bytes_per_s=pocket_chip.figure(gigabytes_per_s * 1e9),
    )


class TestTiers:
    """The pocket chip reads 100 GB at 1 TB/s; slower memory lies behind it."""

    def use(self, weights: float, offloaded: float, kv: float) -> MemoryUse:
        return MemoryUse(100e9, 90e9, weights, 0.0, 0.0, CacheUse(1000.0), offloaded, kv)

    def test_weights_elsewhere_leave_room_for_the_cache(self) -> None:
        assert self.use(120e9, 50e9, 0.0).kv_bytes == 90e9 - 70e9
        assert self.use(120e9, 50e9, 30e9).kv_bytes == 90e9 - 70e9 + 30e9

    def test_room_for_the_cache_elsewhere_does_not_make_weights_fit(self) -> None:
        assert self.use(120e9, 0.0, 500e9).kv_bytes < 0

    def test_everything_in_the_fastest_tier_makes_no_detour(self) -> None:
        assert detour(self.use(50e9, 0.0, 0.0), pocket_chip.CHIP, [tier(500, 100)]) == NO_DETOUR

    def test_a_byte_costs_what_its_tier_charges(self) -> None:
        # half of 100 GB of weights: 1 ps a byte here, 10 ps a byte there, 4.5 ps more on average
        found = detour(self.use(100e9, 50e9, 0.0), pocket_chip.CHIP, [tier(500, 100)])
        assert found.weights_s_per_byte == pytest.approx(4.5e-12)
        assert found.kv_s_per_byte == 0

    def test_weights_fill_the_faster_of_two_slow_tiers_first(self) -> None:
        # 60 GB of 100 are elsewhere: 40 at 10 ps a byte, 20 at 20 ps; the cache of 50 + 30 GB has
        # its 30 in what is left of the slowest
        tiers = [tier(40, 100), tier(500, 50)]
        found = detour(self.use(100e9, 60e9, 30e9), pocket_chip.CHIP, tiers)
        assert found.weights_s_per_byte == pytest.approx((40 * 9 + 20 * 19) / 100 * 1e-12)
        assert found.kv_s_per_byte == pytest.approx(30 / 80 * 19e-12)

    def test_tiers_of_a_superchip(self) -> None:
        """HBM first; LPDDR5X of the Grace CPU is a tier of the chip or of its host."""
        chip, system = CATALOG.accelerator("gh200"), CATALOG.system("gh200_x1")
        kinds = [each.kind for each in slower_tiers(chip, system)]
        assert any("LPDDR5X" in kind for kind in kinds)
        assert not slower_tiers(CATALOG.accelerator("wse3"), CATALOG.system("cs3_x1"))
