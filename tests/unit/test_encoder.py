"""Image encoders: their shapes against published counts, their work and time by hand."""

from itertools import accumulate

import pocket_chip
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sim.catalog import open_catalog
from sim.cost.encoder import (
    embedding_bytes,
    encoder_activation_bytes,
    encoder_operators,
    encoder_weight_bytes,
)
from sim.cost.memory import EngineShare
from sim.cost.operators import Collective, DenseGemm, Handover, PatchAttention
from sim.cost.shares import Shares
from sim.cost.table import StepTable
from sim.cost.timer import OperatorTime, StepTimer
from sim.cost.work import StepShape, prefill_pairs
from sim.efficiency import EngineKernels
from sim.encoder import ImageEncoder, PatchLayers
from sim.overhead import NO_OVERHEAD
from sim.parallelism import Parallelism
from sim.units import GIGA

CATALOG = open_catalog()
MODELS = {name: CATALOG.model(name) for name in CATALOG.names("models")}
ENCODERS = {name: model.encoder for name, model in MODELS.items() if model.encoder is not None}


def images(tokens: int, count: int = 1) -> StepShape:
    """Give the step of a request with so many images of so many tokens."""
    total = tokens * count
    return StepShape(
        prefill_sequences=1, prefill_tokens=total, prefill_pairs=prefill_pairs(0, total)
    )


def flop(encoder: ImageEncoder, shape: StepShape, *, images_per_prompt: int = 1) -> float:
    """Arithmetic of products and attention; norms are left out, as in published counts."""
    listed = encoder_operators(encoder, 1, images_per_prompt)
    return sum(
        op.calls * float(op.work(shape).flop)
        for op in listed
        if isinstance(op, DenseGemm | PatchAttention)
    )


def vision_transformer(layers: int, hidden: int, heads: int) -> ImageEncoder:
    """Build a ViT of Dosovitskiy et al. with patches of 16 pixels and a thousand classes."""
    return ImageEncoder(
        source="arXiv:2010.11929, table 1",
        hidden=hidden,
        heads=heads,
        mlp_intermediate=4 * hidden,
        attention=(PatchLayers(layers=layers),),
        patch_pixels=16,
        projector=(hidden, 1000),
    )


class TestShapes:
    def test_there_are_some(self) -> None:
        assert set(ENCODERS) >= {
            "llama_4_maverick",
            "llama_4_scout",
            "pixtral_12b",
            "qwen2_5_vl_72b",
            "qwen2_5_vl_7b",
        }

    @pytest.mark.parametrize(
        "name", [name for name, encoder in ENCODERS.items() if encoder.published_parameters]
    )
    def test_parameters_are_those_published(self, name: str) -> None:
        encoder = ENCODERS[name]
        figure = encoder.published_parameters
        assert figure is not None
        count = encoder.parameters
        if "without the projector" in (figure.note or ""):
            count -= encoder.projector_parameters
        assert count == pytest.approx(figure.value, rel=0.01)

    def test_llama_4_by_the_weights_of_its_modules(self) -> None:
        """As printed of a checkpoint: four projections and two products of an MLP in each layer,
        the embedding of patches, the adapter's two products, the projector."""
        layer = 4 * 1_982_464 + 2 * 7_929_856
        modules = 827_904 + 34 * layer + 23_068_672 + 16_777_216 + 20_971_520
        assert ENCODERS["llama_4_scout"].parameters == modules
        assert ENCODERS["llama_4_maverick"].parameters == modules

    @pytest.mark.parametrize("name", ENCODERS)
    def test_weights_are_stored_once(self, name: str) -> None:
        encoder = ENCODERS[name]
        assert encoder_weight_bytes(encoder, tp=1) == 2 * encoder.parameters
        # what is cut is cut evenly here, but for the patch embedding, which every rank has
        embedding = 2 * encoder.patch_elements * encoder.hidden
        cut = 4 * (encoder_weight_bytes(encoder, tp=4) - embedding)
        assert cut == 2 * encoder.parameters - embedding

    def test_what_does_not_fit_together_is_refused(self) -> None:
        keys = vision_transformer(2, 64, 4).model_dump()
        with pytest.raises(ValidationError, match="2 merged patches of 64 are 128 wide"):
            ImageEncoder.model_validate(keys | {"patches_per_token": 2})
        with pytest.raises(ValidationError, match="no multiple of the 3 heads"):
            ImageEncoder.model_validate(keys | {"heads": 3})
        model = MODELS["qwen2_5_vl_7b"]
        with pytest.raises(ValidationError, match="ends with 3584, but hidden is 4096"):
            type(model).model_validate(model.model_dump() | {"hidden": 4096})


class TestWork:
    @pytest.mark.parametrize(
        ("layers", "hidden", "heads", "gmac"), [(24, 1024, 16, 61.55), (12, 768, 12, 17.56)]
    )
    def test_flop_are_those_published(
        self, layers: int, hidden: int, heads: int, gmac: float
    ) -> None:
        """ViT-L/16 and ViT-B/16 at 224 x 224 pixels: torchvision counts multiply-adds.

        Its 196 patches are joined by a class token, and one vector alone is classified.
        """
        encoder = vision_transformer(layers, hidden, heads)
        classified = 2 * hidden * 1000 * 196
        ours = flop(encoder, images(196)) - classified
        assert ours / 2 / GIGA == pytest.approx(gmac, rel=0.01)

    def test_an_image_of_qwen2_5_vl_by_hand(self) -> None:
        """1024 tokens are 4096 patches, 28 layers of which see 64 and 4 see all of them."""
        layer = 2 * 4096 * (4 * 1280**2 + 3 * 1280 * 3420)
        products = 32 * layer + 2 * 4096 * 1176 * 1280 + 2 * 1024 * (5120 * 5120 + 5120 * 3584)
        pairs = 28 * 4096 * 64 + 4 * 4096 * 4096
        expected = products + pairs * 4 * 16 * 80
        assert flop(ENCODERS["qwen2_5_vl_7b"], images(1024)) == expected
        # two images see nothing of each other
        both = flop(ENCODERS["qwen2_5_vl_7b"], images(1024, 2), images_per_prompt=2)
        assert both == 2 * expected

    def test_tiles_do_not_see_each_other(self) -> None:
        """Two tiles of Llama 4 are 2 x 576 patches: twice the work of one."""
        encoder = ENCODERS["llama_4_scout"]
        assert flop(encoder, images(288)) == 2 * flop(encoder, images(144))
        (attention,) = [
            op for op in encoder_operators(encoder, 1) if isinstance(op, PatchAttention)
        ]
        assert attention.calls * attention.work(images(144)).flop == 34 * 576**2 * 4 * 1408

    def test_bytes_of_an_image_by_hand(self) -> None:
        listed = {op.name: op for op in encoder_operators(ENCODERS["qwen2_5_vl_7b"], 1)}
        moved = {name: float(op.work(images(1024)).bytes) for name, op in listed.items()}
        assert moved["encoder_qkv"] == 2 * (3840 * 1280 + 4096 * (1280 + 3840))
        assert moved["projector_2"] == 2 * (5120 * 3584 + 1024 * (5120 + 3584))
        # queries, keys, values and outputs once each
        assert moved["encoder_attention"] == 4 * 4096 * 1280 * 2
        # two norms of four vectors, queries rotated in place, gate and up read and a product out
        elements = 8 * 1280 + 2 * 1280 + 3 * 3420
        assert moved["encoder_norms_and_activations"] == 4096 * elements * 2

    @given(st.lists(st.integers(1, 500), min_size=1, max_size=6), st.integers(1, 8))
    def test_pieces_of_an_image_make_up_the_whole(self, pieces: list[int], patches: int) -> None:
        attention = PatchAttention(
            "attention", 1, "gqa", 16, 80, 80, "bf16", "bf16", 0.0, patches_per_token=patches
        )
        steps = [
            StepShape(prefill_tokens=size, prefill_pairs=prefill_pairs(done, size))
            for done, size in zip(accumulate([0, *pieces[:-1]]), pieces, strict=True)
        ]
        assert sum(map(attention.pairs, steps)) == (patches * sum(pieces)) ** 2

    def test_tensor_ranks_share_heads_and_widths(self) -> None:
        listed = {op.name: op for op in encoder_operators(ENCODERS["llama_4_scout"], 4)}
        products = {name: (op.k, op.n) for name, op in listed.items() if isinstance(op, DenseGemm)}
        assert products == {
            "patch_embedding": (588, 1408),
            "encoder_qkv": (1408, 3 * 352),
            "encoder_output": (352, 1408),
            "encoder_mlp_up": (1408, 1408),
            "encoder_mlp_down": (1408, 1408),
            "projector_1": (5632, 1024),
            "projector_2": (1024, 4096),
            "projector_3": (4096, 1280),
        }
        sums = {op.name: op for op in listed.values() if isinstance(op, Collective)}
        # of four patches a token after attention and MLP; of a token between and at the end
        assert {name: (op.calls, op.bytes_per_token) for name, op in sums.items()} == {
            "encoder_all_reduce": (68, 4 * 1408 * 2),
            "projector_sum_2": (1, 4096 * 2),
            "projector_all_gather": (1, 5120 * 2),
        }


BF16 = EngineKernels(
    gemm={"bf16": pocket_chip.VLLM.gemm["bf16"]},
    prefill_attention=tuple(
        kernel.model_copy(update={"kv_dtype": "bf16"})
        for kernel in pocket_chip.VLLM.prefill_attention
    ),
)
"""100 TFLOP/s and 1 TB/s, half of which is reached; every call takes a microsecond more."""
ALONE = Shares(Parallelism(tp=1), chunk_tokens=512)


def timer_of(name: str) -> StepTimer:
    return pocket_chip.timer(
        *encoder_operators(ENCODERS[name], 1),
        Handover("embedding_handover", embedding_bytes(ENCODERS[name]), 1e9, 1e-5, "by hand"),
        shares=ALONE,
        kernels=BF16,
    )


class TestTime:
    def rows(self, tokens: int) -> dict[str, OperatorTime]:
        return {row.name: row for row in timer_of("qwen2_5_vl_7b").explain(images(tokens))}

    def test_of_a_product_by_hand(self) -> None:
        """Half of both peaks is reached, the bounds add up, and a call has a floor of 1 us."""
        rows, patches = self.rows(100), 400
        compute_s = 2 * patches * 1280 * 3840 / 50e12
        memory_s = 2 * (1280 * 3840 + patches * (1280 + 3840)) / 0.5e12
        expected = 32 * (1e-6 + compute_s + memory_s)
        assert float(rows["encoder_qkv"].seconds) == pytest.approx(expected)

    def test_of_attention_by_hand(self) -> None:
        rows, patches = self.rows(100), 400
        token_s = 4 * patches * 1280 * 2 / 1e12
        for name, layers, pairs in (
            ("encoder_attention", 4, patches * patches),
            ("encoder_attention_region", 28, patches * 64),
        ):
            expected = layers * (1e-6 + pairs * 4 * 1280 / 50e12 + token_s)
            assert float(rows[name].seconds) == pytest.approx(expected)

    def test_of_the_way_to_the_language_model(self) -> None:
        row = self.rows(100)["embedding_handover"]
        assert float(row.seconds) == pytest.approx(1e-5 + 100 * 3584 * 2 / 1e9)
        assert row.bound == "network"

    @pytest.mark.parametrize("name", ENCODERS)
    @given(st.lists(st.integers(1, 170), min_size=1, max_size=3))
    def test_tables_are_the_timer(self, name: str, tokens: list[int]) -> None:
        timer = TIMERS[name]
        shape = StepShape(
            prefill_sequences=len(tokens),
            prefill_tokens=sum(tokens),
            prefill_pairs=sum(prefill_pairs(0, each) for each in tokens),
        )
        found = TABLES[name].fixed(shape) + TABLES[name].attended(shape)
        assert float(found) == pytest.approx(timer.seconds(shape), rel=1e-9)


TIMERS = {name: timer_of(name) for name in ENCODERS}
TABLES = {
    name: StepTable.compile(timer, lambda timed: timed.seconds, lambda seconds: seconds, 8)
    for name, timer in TIMERS.items()
}


def test_layers_count_for_the_overhead_of_the_engine() -> None:
    overhead = NO_OVERHEAD.model_copy(update={"layer_s": 1e-3})
    listed = encoder_operators(ENCODERS["qwen2_5_vl_7b"], 1)
    timer = pocket_chip.timer(*listed, overhead=overhead, shares=ALONE, kernels=BF16)
    assert timer.overhead_s(images(100)) == pytest.approx(32e-3)


def test_activations_by_hand() -> None:
    """Four patches of four hidden vectors and three inner ones, and what comes out."""
    share = EngineShare(0.9, 0.0, max_num_batched_tokens=1000, max_num_seqs=1)
    found = encoder_activation_bytes(ENCODERS["qwen2_5_vl_7b"], 1, share)
    assert found == 1000 * (4 * (4 * 1280 + 3 * 3420) + 3584) * 2
