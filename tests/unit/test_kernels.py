"""Which law stands for which operator: the turns of the search, and what is said of stand-ins."""

from collections.abc import Iterator
from typing import Literal

import pytest
from pocket_chip import BF16_PEAK, CHIP, FIT, GEMM_LAW, calibration, figure

from sim.catalog import open_catalog
from sim.cost.kernels import KernelShelf
from sim.cost.operators import DecodeAttention, DenseGemm, ExpertGemm, PrefillAttention
from sim.efficiency import (
    DecodeAttentionKernel,
    DecodeAttentionLaw,
    Engine,
    EngineKernels,
    GemmKernel,
)
from sim.errors import InputError
from sim.precision import FORMATS, GemmFormat
from sim.priors import FamilyPrior, Prior
from sim.units import Dtype

CATALOG = open_catalog()
Kind = Literal["gqa", "mla"]
ENGINES: tuple[Engine, ...] = ("vllm", "trtllm", "sglang", "native")


def dense(weights: Dtype, reads: Dtype | None = None) -> DenseGemm:
    return DenseGemm("g", 1, "tokens", n=1000, k=2000, dtype=weights, activation_dtype=reads)


def experts(weights: Dtype, reads: Dtype | None = None) -> ExpertGemm:
    return ExpertGemm("e", 1, 1024, 512, 8, 8, 2, weights, activation_dtype=reads)


def decode(kv: Dtype, dim: int, *, windowed: bool = False, latent: bool = False) -> DecodeAttention:
    kind: Kind = "mla" if latent else "gqa"
    return DecodeAttention("d", 1, kind, 8, 1, dim, dim, 2 * dim, kv, windowed)


def prefill(
    asked: Dtype, kv: Dtype, dim: int, *, windowed: bool = False, latent: bool = False
) -> PrefillAttention:
    kind: Kind = "mla" if latent else "gqa"
    return PrefillAttention("p", 1, kind, 8, dim, dim, asked, kv, 4000.0, windowed)


def gemm(name: GemmFormat, floor_s: float = 1e-6) -> GemmKernel:
    dtypes = FORMATS[name]
    return GemmKernel(
        compute_dtype=dtypes.compute,
        weight_dtype=dtypes.weight,
        activation_dtype=dtypes.activation,
        law=GEMM_LAW.model_copy(update={"floor_s": floor_s}),
        fit=FIT,
    )


def attention(kv: Dtype, dim: int, floor_s: float, *, windowed: bool) -> DecodeAttentionKernel:
    law = DecodeAttentionLaw(
        floor_s=floor_s,
        memory_efficiency=0.5,
        compute_efficiency=0.5,
        sharpness=1.0,
        idle_rows=0.0,
        row_s=0.0,
    )
    return DecodeAttentionKernel(
        kv_dtype=kv, head_dim=dim, windowed=windowed, compute_dtype="bf16", law=law, fit=FIT
    )


def shelf(engine: Engine = "vllm", **engines: EngineKernels) -> KernelShelf:
    measured = calibration(kernels=engines) if engines else calibration()
    return KernelShelf(CHIP, "pocket", measured, None, engine, "by hand")


class TestProducts:
    def test_its_own_format_is_taken_as_measured(self) -> None:
        kernel, source = shelf().gemm(dense("fp8"))
        assert kernel.compute_dtype == "fp8"
        assert source == "fitted: vllm fp8, 1 rows, median error 0.0%"

    def test_another_engine_stands_in_before_another_format(self) -> None:
        found = shelf(
            vllm=EngineKernels(gemm={"bf16": gemm("bf16")}),
            trtllm=EngineKernels(gemm={"int4_bf16": gemm("int4_bf16")}),
        )
        kernel, source = found.gemm(dense("int4"))
        assert source.startswith("fitted: trtllm int4_bf16")
        assert (kernel.compute_dtype, kernel.weight_dtype) == ("bf16", "int4")

    def test_weights_that_no_kernel_was_measured_with_are_widened(self) -> None:
        kernel, source = shelf().gemm(dense("int4"))
        assert (kernel.compute_dtype, kernel.weight_dtype) == ("bf16", "int4")
        assert kernel.activation_dtype == "bf16"
        assert source.endswith("stands in for int4: weights widened to bf16 inside the kernel")

    def test_fp8_on_a_chip_without_fp8(self) -> None:
        old = CHIP.model_copy(update={"peak_flop_per_s": {"bf16": figure(BF16_PEAK)}})
        found = KernelShelf(old, "old", calibration(), None, "vllm", "by hand")
        kernel, source = found.gemm(dense("fp8"))
        assert (kernel.compute_dtype, kernel.weight_dtype) == ("bf16", "fp8")
        assert "stands in for fp8: weights widened" in source
        # The work is that of one byte a weight and two an activation.
        assert found.grouped_gemm(experts("mxfp4"))[0].compute_dtype == "bf16"

    def test_a_wish_for_wide_activations_is_kept(self) -> None:
        kernel, source = shelf().gemm(dense("fp8", "bf16"))
        assert (kernel.compute_dtype, kernel.activation_dtype) == ("bf16", "bf16")
        assert "widened" in source

    def test_int8_takes_the_law_of_fp8_from_its_own_peak(self) -> None:
        peaks = {**CHIP.peak_flop_per_s, "int8": figure(400e12)}
        chip = CHIP.model_copy(update={"peak_flop_per_s": peaks})
        found = KernelShelf(chip, "pocket", calibration(), None, "vllm", "by hand")
        kernel, source = found.gemm(dense("int8"))
        assert (kernel.compute_dtype, kernel.activation_dtype) == ("int8", "int8")
        assert source.endswith("stands in for int8, in units of this chip's int8 peak")

    def test_a_law_of_widened_weights_says_nothing_of_another_peak(self) -> None:
        widened = gemm("fp8").model_copy(
            update={"compute_dtype": "bf16", "activation_dtype": "bf16"}
        )
        peaks = {"bf16": figure(BF16_PEAK), "int8": figure(400e12)}
        chip = CHIP.model_copy(update={"peak_flop_per_s": peaks})
        laws = calibration(
            kernels={"vllm": EngineKernels(gemm={"fp8": widened, "bf16": gemm("bf16")})}
        )
        found = KernelShelf(chip, "x", laws, None, "vllm", "by hand")
        assert found.gemm(dense("int8"))[0].compute_dtype == "bf16"
        assert found.gemm(dense("fp8"))[1].startswith("fitted: vllm fp8")

    def test_nothing_at_all_is_an_error_with_a_way_out(self) -> None:
        found = shelf(vllm=EngineKernels(gemm={"fp8": gemm("fp8")}))
        with pytest.raises(InputError, match=r"GEMM with bf16 weights on pocket.*hardware/priors"):
            found.gemm(dense("bf16"))


class TestAttention:
    LAWS = EngineKernels(
        decode_attention=(
            attention("bf16", 64, 1e-6, windowed=False),
            attention("bf16", 128, 2e-6, windowed=False),
            attention("bf16", 64, 3e-6, windowed=True),
        )
    )

    @pytest.mark.parametrize(
        ("dim", "windowed", "floor_s", "said"),
        [
            (64, False, 1e-6, ""),
            (128, False, 2e-6, ""),
            (256, False, 2e-6, "heads of 128 for 256"),
            (64, True, 3e-6, ""),
            (256, True, 3e-6, "heads of 64 for 256"),
        ],
    )
    def test_the_nearest_heads_are_taken(
        self, dim: int, windowed: bool, floor_s: float, said: str
    ) -> None:
        kernel, source = shelf(vllm=self.LAWS).decode_attention(
            decode("bf16", dim, windowed=windowed)
        )
        assert kernel.law.floor_s == floor_s
        assert source.partition("; ")[2] == said

    def test_a_window_is_never_read_for_whole_contexts(self) -> None:
        only = EngineKernels(decode_attention=(attention("bf16", 64, 3e-6, windowed=True),))
        with pytest.raises(InputError, match="decode attention"):
            shelf(vllm=only).decode_attention(decode("bf16", 64))

    def test_whole_contexts_stand_in_for_a_window(self) -> None:
        only = EngineKernels(decode_attention=(attention("bf16", 64, 3e-6, windowed=False),))
        source = shelf(vllm=only).decode_attention(decode("bf16", 64, windowed=True))[1]
        assert source.endswith("law of whole contexts for a window")

    def test_a_narrow_cache_takes_fp8_first_and_a_wide_one_never(self) -> None:
        found = shelf()
        kernel, source = found.decode_attention(decode("int8", 100))
        assert source.endswith("fp8 cache for int8")
        assert kernel.compute_dtype == "fp8"
        with pytest.raises(InputError, match="over a bf16 KV cache"):
            found.decode_attention(decode("bf16", 100))

    def test_prefill_in_a_format_that_was_not_measured(self) -> None:
        kernel, source = shelf().prefill_attention(prefill("fp8", "fp8", 100))
        assert kernel.compute_dtype == "bf16"
        assert source.endswith("bf16 for fp8")


class TestSameDie:
    """Whether another engine's kernel on this chip or this engine's on a sibling stands in."""

    @staticmethod
    def source(engine: Engine, same_die_as: str | None, donated: Engine = "vllm") -> str:
        own = calibration(kernels={"trtllm": EngineKernels(gemm={"fp8": gemm("fp8", 2e-6)})})
        own = own.model_copy(update={"same_die_as": same_die_as})
        donor = calibration(kernels={donated: EngineKernels(gemm={"fp8": gemm("fp8", 3e-6)})})
        estimate = {"value": 0.5, "source": "by hand", "confidence": "estimate"}
        ratios = ("compute_ratio", "memory_ratio", "floor_ratio", "spread_fraction")
        rule = FamilyPrior.model_validate(
            {"family": "pocket", "about": "by hand", "donor": "elder"}
            | dict.fromkeys(ratios, estimate)
        )
        prior = Prior(rule, CHIP, donor)
        kernel, source = KernelShelf(CHIP, "pocket", own, prior, engine, "by hand").gemm(
            dense("fp8")
        )
        # Laws of the same die are read as they are; of another chip, with half the floor.
        floors = {"fitted": 2e-6, "assumed": 3e-6 if same_die_as == "elder" else 1.5e-6}
        assert kernel.law.floor_s == floors[source.partition(":")[0]]
        return source

    def test_a_sibling_s_kernel_of_the_engine_comes_before_another_engine_s(self) -> None:
        assert self.source("vllm", "elder").startswith("assumed: laws of elder, same die: vllm fp8")
        assert self.source("vllm", None).startswith("fitted: trtllm fp8")
        assert self.source("vllm", "somebody_else").startswith("fitted: trtllm fp8")

    def test_what_was_measured_on_the_chip_itself_comes_first(self) -> None:
        assert self.source("trtllm", "elder", "trtllm").startswith("fitted: trtllm fp8")

    def test_another_engine_is_taken_from_the_chip_itself(self) -> None:
        assert self.source("vllm", "elder", "trtllm").startswith("fitted: trtllm fp8")

    def test_h800_runs_the_engines_of_h100(self) -> None:
        """All kernels measured on H800 are SGLang's: vLLM there is vLLM on the same die."""
        family = CATALOG.prior("hopper")
        found = {
            name: KernelShelf(
                CATALOG.accelerator(name), name, CATALOG.calibration(name), family, "vllm", "-"
            )
            for name in ("h100_sxm", "h800_sxm")
        }
        for name in ("fp8", "bf16", "int4"):
            elder, sibling = (found[chip].gemm(dense(name))[0] for chip in found)
            assert elder.law == sibling.law
            elder_experts, own = (found[chip].grouped_gemm(experts(name))[0] for chip in found)
            assert elder_experts.law == own.law
        latent = decode("bf16", 512, latent=True)
        # Nobody measured vLLM's latent decode in a graph; H800's own stands in.
        assert found["h800_sxm"].decode_attention(latent)[1].startswith("fitted: sglang")


# --- The whole catalogue: every chip, engine and format finds a law that the chip can run.


def operators_of(weights: Dtype) -> Iterator[DenseGemm | ExpertGemm]:
    for reads in (None, "bf16"):
        yield dense(weights, reads)
        yield experts(weights, reads)


@pytest.mark.parametrize("accelerator_id", CATALOG.names("accelerators"))
def test_every_chip_of_the_catalogue_runs_every_format(accelerator_id: str) -> None:
    chip = CATALOG.accelerator(accelerator_id)
    measured = CATALOG.calibration(accelerator_id)
    prior = CATALOG.prior(chip.family)
    weights: tuple[Dtype, ...] = ("bf16", "fp16", "fp8", "int8", "int4", "nvfp4", "mxfp4")
    caches: tuple[Dtype, ...] = ("bf16", "fp8", "int8")
    for engine in ENGINES:
        found = KernelShelf(chip, accelerator_id, measured, prior, engine, "by hand")
        products = [
            found.gemm(each) if isinstance(each, DenseGemm) else found.grouped_gemm(each)
            for dtype in weights
            for each in operators_of(dtype)
        ]
        heads = [
            law
            for kv in caches
            for dim in (64, 128, 256)
            for latent in (False, True)
            for law in (
                found.decode_attention(decode(kv, dim, latent=latent, windowed=not latent)),
                found.prefill_attention(prefill("bf16", kv, dim, latent=latent)),
                found.prefill_attention(prefill("fp8", kv, dim, latent=latent)),
            )
        ]
        for kernel, source in (*products, *heads):
            assert found.peak_flop_per_s(kernel.compute_dtype) > 0
            assert source.startswith(("fitted: ", "assumed: "))
            if measured is None:
                assert source.startswith("assumed: laws of ")
