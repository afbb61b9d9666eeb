"""Which models fit into which machines: ten cases worked out by hand.

The weights of a chip are its part of the parameters times the bytes of their format; embedding,
LM head and router stay in 16 bits. A chip may use 90 % of its memory, less what its engine holds.
"""

from typing import NamedTuple

import pytest

from sim.catalog import open_catalog
from sim.errors import InfeasibleError
from sim.feasibility import check_split, fitted_memory
from sim.parallelism import Parallelism
from sim.presets import place_of, resolved
from sim.scenario import Case, load_scenario

CATALOG = open_catalog()

# parameters, a layer at a time: attention, MLP or experts
LLAMA_70B = 80 * (8192 * (64 + 16) * 128 + 8192 * 8192 + 3 * 8192 * 28672)  # 68.5 billion
LLAMA_405B = 126 * (16384 * (128 + 16) * 128 + 16384 * 16384 + 3 * 16384 * 53248)  # 402 billion
LLAMA_8B = 32 * (4096 * (32 + 16) * 128 + 4096 * 4096 + 3 * 4096 * 14336)  # 7.0 billion
MIXTRAL = 56 * (6144 * (48 + 16) * 128 + 6144 * 6144 + 8 * 3 * 6144 * 16384)  # 140 billion
QWEN = 94 * (4096 * (64 + 8) * 128 + 8192 * 4096 + 128 * 3 * 4096 * 1536)  # 234 billion
DEEPSEEK_EXPERTS = 58 * 257 * 3 * 7168 * 2048  # 256 routed and a shared one: 656 billion
# 61 layers of latent attention, 187 million each, and three dense layers: 12.6 billion
DEEPSEEK_REST = 61 * 187_105_280 + 3 * 3 * 7168 * 18432
# in 16 bits: the router, and a copy of the latent's expansion for decode (vLLM, SGLang)
DEEPSEEK_WIDE = 58 * 7168 * 256 + 61 * 2 * 128 * 128 * 512
OSS_EXPERTS = 36 * 128 * 3 * 2880 * 2880  # 115 billion
OSS_REST = 36 * (2880 * (64 + 16) * 64 + 64 * 64 * 2880)

FP8, BF16, NVFP4, MXFP4 = 1, 2, 0.5625, 0.53125


def tables(vocabulary: int, hidden: int) -> int:
    """Bytes of input embedding and LM head."""
    return 2 * vocabulary * hidden * BF16


class Fit(NamedTuple):
    """A model in a format, what it weighs, and splits that fit and that do not."""

    model: str
    weights: str
    weights_bytes: float
    system: str
    fits: dict[str, int]
    fits_not: dict[str, int]
    engine: str = "vllm"
    systems: int = 1


DEEPSEEK = FP8 * (DEEPSEEK_EXPERTS + DEEPSEEK_REST) + BF16 * DEEPSEEK_WIDE
DEEPSEEK += tables(129_280, 7168)
LLAMA_TABLES, LARGE_TABLES = tables(128_256, 8192), tables(128_256, 16384)
CASES = {
    # 141 GB: a chip has 80 GB, so two; each holds 70.6 GB of the 76 GB that it may use
    "Llama 3.1 70B, H100": Fit(
        "llama_3_1_70b",
        "bf16",
        BF16 * LLAMA_70B + LLAMA_TABLES,
        "h100_sxm_x8",
        {"tp": 2},
        {"tp": 1},
    ),
    # 410 GB: 51 GB on each of eight, 103 GB on each of four
    "Llama 3.1 405B in FP8, H100": Fit(
        "llama_3_1_405b",
        "fp8",
        FP8 * LLAMA_405B + LARGE_TABLES,
        "h100_sxm_x8",
        {"tp": 8},
        {"tp": 4},
    ),
    # the same 103 GB are no trouble for 141 GB, 205 GB on each of two are
    "Llama 3.1 405B in FP8, H200": Fit(
        "llama_3_1_405b",
        "fp8",
        FP8 * LLAMA_405B + LARGE_TABLES,
        "h200_sxm_x8",
        {"tp": 4},
        {"tp": 2},
    ),
    # 812 GB: 101 GB on each of eight chips of 192 GB; 203 GB on each of four
    "Llama 3.1 405B, MI300X": Fit(
        "llama_3_1_405b",
        "bf16",
        BF16 * LLAMA_405B + LARGE_TABLES,
        "mi300x_x8",
        {"tp": 8},
        {"tp": 4},
    ),
    # 281 GB: 70 GB on each of four
    "Mixtral 8x22B, H100": Fit(
        "mixtral_8x22b",
        "bf16",
        BF16 * MIXTRAL + tables(32_768, 6144),
        "h100_sxm_x8",
        {"tp": 4},
        {"tp": 2},
    ),
    # 672 GB: 84 GB on each of eight is more than an H100 has; sixteen of them will do
    "DeepSeek-R1 in FP8, H100": Fit(
        "deepseek_r1",
        "fp8",
        DEEPSEEK,
        "h100_sxm_x8",
        {"tp": 16},
        {"tp": 8},
        systems=2,
    ),
    "DeepSeek-R1 in FP8, H200": Fit(
        "deepseek_r1",
        "fp8",
        DEEPSEEK,
        "h200_sxm_x8",
        {"tp": 8},
        {"tp": 4},
    ),
    # 65 GB with the experts in 4.25 bits: on one chip, as its makers say
    "gpt-oss-120b, H100": Fit(
        "gpt_oss_120b",
        "mxfp4",
        MXFP4 * OSS_EXPERTS + BF16 * OSS_REST + tables(201_088, 2880),
        "h100_sxm_x8",
        {"tp": 1},
        {},
    ),
    # 470 GB: 59 GB on each of eight, 118 GB on each of four
    "Qwen3 235B-A22B, H100": Fit(
        "qwen3_235b_a22b",
        "bf16",
        BF16 * QWEN + tables(151_936, 4096),
        "h100_sxm_x8",
        {"tp": 8},
        {"tp": 4},
    ),
    # 141 GB on wafers of 44 GB: 36 GB on the fullest of four, 46 GB on the larger of three
    "Llama 3.1 70B, WSE-3": Fit(
        "llama_3_1_70b",
        "bf16",
        BF16 * LLAMA_70B + LLAMA_TABLES,
        "cs3_x1",
        {"tp": 1, "pp": 4},
        {"tp": 1, "pp": 3},
        engine="native",
        systems=4,
    ),
    # 16 GB on a chip of 24 GB
    "Llama 3.1 8B, RTX 4090": Fit(
        "llama_3_1_8b",
        "bf16",
        BF16 * LLAMA_8B + tables(128_256, 4096),
        "rtx_4090_x8",
        {"tp": 1},
        {},
    ),
}


def case_of(fit: Fit, split: dict[str, int]) -> Case:
    settings = {
        "system": fit.system,
        "systems": str(fit.systems),
        "model": fit.model,
        "parallelism": str(split),
        "precision.weights": fit.weights,
        "precision.kv_cache": "bf16",
        "engine.name": fit.engine,
    }
    path = CATALOG.path("scenarios", "quickstart")
    return load_scenario(path, list(settings.items())).cases[0]


def memory_of(fit: Fit, split: dict[str, int]) -> float:
    """Weights of the fullest chip; an error where they leave no room."""
    case, model = case_of(fit, split), CATALOG.model(fit.model)
    system = CATALOG.system(fit.system)
    check_split(case, model, system)
    chip = CATALOG.accelerator(system.accelerator)
    place = place_of(system.accelerator, chip, case.parallelism)
    engine = resolved(case.engine, CATALOG.engine(case.engine.name), place)
    case = case.model_copy(update={"engine": engine})
    return fitted_memory(case, model, chip, system).weights_bytes


@pytest.mark.parametrize("fit", CASES.values(), ids=CASES)
def test_weights_of_a_chip(fit: Fit) -> None:
    split = Parallelism.model_validate(fit.fits)
    expected = fit.weights_bytes / split.chips
    if split.pp > 1:  # the first or the last stage has one of two tables whole beside its layers
        expected += LLAMA_TABLES * (1 / 2 - 1 / split.pp)
    # 3 %: every tensor rank keeps the router and the projections down to the latent
    assert memory_of(fit, fit.fits) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("fit", CASES.values(), ids=CASES)
def test_fewer_chips_are_too_small(fit: Fit) -> None:
    if not fit.fits_not:
        return
    with pytest.raises(InfeasibleError, match="room for KV cache"):
        memory_of(fit, fit.fits_not)


@pytest.mark.parametrize("split", [{"tp": 8, "pp": 2}, {"tp": 1, "attention_dp": 16, "ep": 16}])
def test_other_ways_over_two_hosts(split: dict[str, int]) -> None:
    """DeepSeek-R1 fits over sixteen H100 in stages, and with experts dealt to all of them.

    In stages 31 of 61 layers; dealt out, all of the 16 bits and the latent attention on each chip
    beside a sixteenth of the experts: 41 + 14 + 3.7 GB.
    """
    fit = CASES["DeepSeek-R1 in FP8, H100"]
    assert memory_of(fit, split) < 76e9


def test_attention_ranks_each_keep_all_of_the_attention() -> None:
    fit = CASES["DeepSeek-R1 in FP8, H100"]
    elsewhere = FP8 * 58 * 256 * 3 * 7168 * 2048 * 15 / 16  # routed experts of other ranks
    dealt = {"tp": 1, "attention_dp": 16, "ep": 16}
    assert memory_of(fit, dealt) == pytest.approx(DEEPSEEK - elsewhere, rel=1e-6)
