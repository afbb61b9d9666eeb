"""How one chip's memory is divided, by hand."""

import pocket_chip
import pytest

from sim.catalog import open_catalog
from sim.cost.memory import (
    SAMPLER_COPIES,
    EngineShare,
    MemoryUse,
    activation_bytes,
    engine_bytes,
    memory_use,
)
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
    use = MemoryUse(80e9, 72e9, 100e9, 1e9, 1e9, 1000.0)
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

    @pytest.mark.parametrize(("tp", "ep"), [(8, 1), (8, 8)])
    def test_expert_workspace(self, tp: int, ep: int) -> None:
        model = CATALOG.model("deepseek_r1")
        split = Parallelism(tp=tp, ep=ep)
        with_experts = activation_bytes(model, split, share(seqs=1))
        without = activation_bytes(model.model_copy(update={"moe": None}), split, share(seqs=1))
        # eight picks of each of 8192 tokens; cut experts see all of them with 256 of 2048 inner
        # columns, dealt ones see an eighth of them whole; the output of 7168 is the widest
        picks, inner = (65_536, 256) if ep == 1 else (8192, 2048)
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
