"""One step of Llama 3.1 70B in FP8 on eight H100, worked with a pocket calculator.

Every FLOP and byte below is plain arithmetic on the published shape of the model; seconds are the
fitted law of each kernel, written out again. The cost model must give the same.
"""

from collections.abc import Iterable

import pytest

from sim.catalog import open_catalog
from sim.cost.timer import ELEMENTWISE_EFFICIENCY, OperatorTime, StepTimer
from sim.cost.work import StepShape, prefill_pairs
from sim.deployment import Deployment, deploy
from sim.efficiency import Calibration, CollectiveLine, GemmKernel
from sim.scenario import load_scenario

CATALOG = open_catalog()

LAYERS, HIDDEN, INNER, VOCABULARY = 80, 8192, 28672, 128256
QUERY_HEADS, KV_HEADS, HEAD = 64 // 8, 8 // 8, 128
INNER_CHIP, VOCABULARY_CHIP = INNER // 8, VOCABULARY // 8

BANDWIDTH = 3.35e12
PEAK = {"bf16": 989e12, "fp8": 1979e12}

BATCH_1 = StepShape(decode_sequences=1, decode_context_tokens=1024)
BATCH_64 = StepShape(decode_sequences=64, decode_context_tokens=64 * 1024)
PROMPT = StepShape(prefill_sequences=1, prefill_tokens=8192, prefill_pairs=prefill_pairs(0, 8192))
STEPS = {"batch 1": BATCH_1, "batch 64": BATCH_64, "prompt of 8192": PROMPT}

# operator: FLOP and bytes per step and chip; K = 1024 keys of context
WORK = {
    ("batch 1", "qkv_projection"): (80 * 2 * 8192 * 1280, 80 * (8192 * 1280 + 8192 + 2 * 1280)),
    ("batch 1", "output_projection"): (80 * 2 * 1024 * 8192, 80 * (1024 * 8192 + 1024 + 2 * 8192)),
    ("batch 1", "mlp_gate_up"): (80 * 2 * 8192 * 7168, 80 * (8192 * 7168 + 8192 + 2 * 7168)),
    ("batch 1", "mlp_down"): (80 * 2 * 3584 * 8192, 80 * (3584 * 8192 + 3584 + 2 * 8192)),
    ("batch 1", "attention_decode"): (80 * 1024 * 4 * 8 * 128, 80 * 1024 * 2 * 128),
    ("batch 1", "lm_head"): (2 * 8192 * 16032, 2 * (8192 * 16032 + 8192 + 16032)),
    ("batch 1", "norms_and_activations"): (80 * 78336, 80 * 2 * 78336),
    ("batch 1", "tensor_all_reduce"): (0, 160 * 8192 * 2),
    ("batch 64", "qkv_projection"): (
        64 * 80 * 2 * 8192 * 1280,
        80 * (8192 * 1280 + 64 * (8192 + 2 * 1280)),
    ),
    ("batch 64", "output_projection"): (
        64 * 80 * 2 * 1024 * 8192,
        80 * (1024 * 8192 + 64 * (1024 + 2 * 8192)),
    ),
    ("batch 64", "mlp_gate_up"): (
        64 * 80 * 2 * 8192 * 7168,
        80 * (8192 * 7168 + 64 * (8192 + 2 * 7168)),
    ),
    ("batch 64", "mlp_down"): (
        64 * 80 * 2 * 3584 * 8192,
        80 * (3584 * 8192 + 64 * (3584 + 2 * 8192)),
    ),
    ("batch 64", "attention_decode"): (80 * 64 * 1024 * 4 * 8 * 128, 80 * 64 * 1024 * 2 * 128),
    ("batch 64", "lm_head"): (64 * 2 * 8192 * 16032, 2 * (8192 * 16032 + 64 * (8192 + 16032))),
    ("batch 64", "norms_and_activations"): (64 * 80 * 78336, 64 * 80 * 2 * 78336),
    ("batch 64", "tensor_all_reduce"): (0, 160 * 64 * 8192 * 2),
    ("prompt of 8192", "qkv_projection"): (
        8192 * 80 * 2 * 8192 * 1280,
        80 * (8192 * 1280 + 8192 * (8192 + 2 * 1280)),
    ),
    ("prompt of 8192", "output_projection"): (
        8192 * 80 * 2 * 1024 * 8192,
        80 * (1024 * 8192 + 8192 * (1024 + 2 * 8192)),
    ),
    ("prompt of 8192", "mlp_gate_up"): (
        8192 * 80 * 2 * 8192 * 7168,
        80 * (8192 * 7168 + 8192 * (8192 + 2 * 7168)),
    ),
    ("prompt of 8192", "mlp_down"): (
        8192 * 80 * 2 * 3584 * 8192,
        80 * (3584 * 8192 + 8192 * (3584 + 2 * 8192)),
    ),
    # 1 + 2 + ... + 8192 pairs; queries and outputs in 16 bits, keys and values in 16 and in 8
    ("prompt of 8192", "attention_prefill"): (
        80 * (8192 * 8193 // 2) * 4 * 8 * 128,
        80 * 8192 * (2 * 8 * 128 * 2 + 2 * 1 * 128 * (2 + 1)),
    ),
    ("prompt of 8192", "lm_head"): (2 * 8192 * 16032, 2 * (8192 * 16032 + 8192 + 16032)),
    ("prompt of 8192", "norms_and_activations"): (8192 * 80 * 78336, 8192 * 80 * 2 * 78336),
    ("prompt of 8192", "tensor_all_reduce"): (0, 160 * 8192 * 8192 * 2),
}
"""78336 elements a token and layer: two norms of four hidden vectors (65536), 8 query heads of 128
read and written (2048), two inner vectors of 3584 read and one written (10752)."""


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    settings = [("parallelism.tp", "8"), ("engine.name", "vllm")]
    scenario = load_scenario(CATALOG.path("scenarios", "quickstart"), settings)
    (case,) = [case for case in scenario.cases if case.system == "h100_sxm_x8"]
    assert (case.model, case.precision.weights) == ("llama_3_1_70b", "fp8")
    return deploy(case, CATALOG)


def calibration() -> Calibration:
    found = CATALOG.calibration("h100_sxm")
    assert found is not None
    return found


def table(timer: StepTimer, step: str) -> dict[str, OperatorTime]:
    return {row.name: row for row in timer.explain(STEPS[step])}


@pytest.mark.parametrize("step", STEPS)
def test_flop_and_bytes(deployment: Deployment, step: str) -> None:
    rows = table(deployment.timer, step)
    expected = {name: work for (of, name), work in WORK.items() if of == step}
    assert set(rows) == {*expected, "engine_overhead"}
    for name, (flop, moved) in expected.items():
        assert float(rows[name].flop) == flop, name
        assert float(rows[name].bytes) == moved, name


def p_norm(sharpness: float, terms: Iterable[float]) -> float:
    return sum(term**sharpness for term in terms) ** (1 / sharpness)


def gemm_s(kernel: GemmKernel, rows: int, width: int, depth: int, kept_floor: float) -> float:
    """Time of one dense product: bounds in a soft maximum, floor, conversion of the inputs."""
    law = kernel.law
    weight, read = (1, 1) if kernel.compute_dtype == "fp8" else (2, 2)
    flop = 2 * rows * width * depth
    moved = width * depth * weight + rows * (depth * read + width * 2)
    bounds = (
        flop * (1 + law.tile_depth / depth) / PEAK[kernel.compute_dtype] / law.compute_efficiency,
        moved / BANDWIDTH / law.memory_efficiency,
        law.depth_s * depth,
    )
    converted = rows * depth * (2 + 1) / BANDWIDTH if kernel.compute_dtype == "fp8" else 0.0
    work = p_norm(law.sharpness, bounds) + law.conversion_slowdown * converted
    if law.correction is not None:
        light = max(flop / PEAK[kernel.compute_dtype], moved / BANDWIDTH)
        work = max(float(work * law.correction.of(work, float(depth))), light)
    return kept_floor * law.floor_s + work


@pytest.mark.parametrize("step", STEPS)
def test_seconds(deployment: Deployment, step: str) -> None:
    shape = STEPS[step]
    tokens = int(shape.decode_sequences + shape.prefill_tokens)
    sequences = int(shape.decode_sequences + shape.prefill_sequences)
    kernels = calibration().kernels["vllm"]
    overhead = deployment.timer.overhead
    kept = overhead.floor_fraction
    fp8, bf16 = kernels.gemm["fp8"], kernels.gemm["bf16"]
    lines: list[CollectiveLine] = [
        line
        for library in ("vllm", "nccl")
        for line in calibration().collectives["all_reduce"][library][8].law.lines
    ]
    message = tokens * HIDDEN * 2
    expected = {
        "qkv_projection": LAYERS * gemm_s(fp8, tokens, 1280, HIDDEN, kept),
        "output_projection": LAYERS * gemm_s(fp8, tokens, HIDDEN, 1024, kept),
        "mlp_gate_up": LAYERS * gemm_s(fp8, tokens, 2 * INNER_CHIP, HIDDEN, kept),
        "mlp_down": LAYERS * gemm_s(fp8, tokens, HIDDEN, INNER_CHIP, kept),
        "lm_head": gemm_s(bf16, sequences, VOCABULARY_CHIP, HIDDEN, kept),
        "norms_and_activations": (LAYERS * tokens * 78336 * 2 / BANDWIDTH / ELEMENTWISE_EFFICIENCY),
        "tensor_all_reduce": (
            2 * LAYERS * min(line.start_s + message * line.seconds_per_byte for line in lines)
        ),
        "engine_overhead": (
            overhead.step_s + LAYERS * overhead.layer_s + sequences * overhead.sequence_s
        ),
    }
    if shape.prefill_tokens:
        (prefill,) = [
            kernel
            for kernel in kernels.prefill_attention
            if (kernel.attention_dtype, kernel.kv_dtype, kernel.head_dim) == ("bf16", "fp8", HEAD)
        ]
        law = prefill.law
        flop = 4 * (8192 * 8193 // 2) * QUERY_HEADS * HEAD
        moved = 8192 * HEAD * (2 * QUERY_HEADS * 2 + 2 * KV_HEADS * (2 + 1))
        expected["attention_prefill"] = LAYERS * (
            kept * law.floor_s
            + flop / PEAK[prefill.compute_dtype] / law.compute_efficiency
            + law.token_slowdown * moved / BANDWIDTH
        )
    else:
        (decode,) = [
            kernel.law
            for kernel in kernels.decode_attention
            if (kernel.kv_dtype, kernel.head_dim, kernel.windowed) == ("fp8", HEAD, False)
        ]
        keys = int(shape.decode_context_tokens)
        bounds = (
            keys * 2 * KV_HEADS * HEAD / BANDWIDTH / decode.memory_efficiency,
            keys * 4 * QUERY_HEADS * HEAD / PEAK["fp8"] / decode.compute_efficiency,
        )
        rows = tokens * KV_HEADS
        expected["attention_decode"] = LAYERS * (
            kept * decode.floor_s
            + p_norm(decode.sharpness, bounds) * (1 + decode.idle_rows / rows)
            + decode.row_s * rows
        )
    priced = {name: float(row.seconds) for name, row in table(deployment.timer, step).items()}
    assert priced == pytest.approx(expected, rel=1e-9)
    assert deployment.timer.seconds(shape) == pytest.approx(sum(expected.values()), rel=1e-9)


def test_a_single_sequence_waits_for_weights_and_the_engine(deployment: Deployment) -> None:
    """Reading 8.82 GB of weights takes 2.63 ms; kernels, network and engine must explain the rest.

    80 * 855,638,016 bytes of FP8 layers and 2 * 128256 * 8192 of LM head, an eighth each.
    """
    weights_s = (80 * 855_638_016 + 2 * 128256 * 8192) / 8 / BANDWIDTH
    assert weights_s == pytest.approx(2.63e-3, rel=0.002)
    fused = deployment.timer.overhead.model_copy(update={"floor_fraction": 0.0})
    rows = table(deployment.timer.with_overhead(fused), "batch 1")
    products = ("qkv_projection", "output_projection", "mlp_gate_up", "mlp_down", "lm_head")
    products_s = sum(float(rows[name].seconds) for name in products)
    # kernels measured alone, less their floors, reach 0.73 (small qkv) to 0.87 of the bandwidth
    assert weights_s / 0.87 < products_s < weights_s / 0.70
    network_s = float(rows["tensor_all_reduce"].seconds)
    assert 160 * 3e-6 < network_s < 160 * 10e-6  # 16 kB over NVLink: a few microseconds
    others = ("attention_decode", "norms_and_activations")
    rest_s = network_s + sum(float(rows[name].seconds) for name in others)
    engine_s = float(rows["engine_overhead"].seconds)
    in_engine = deployment.timer.with_overhead(fused).seconds(BATCH_1)
    assert in_engine == pytest.approx(products_s + rest_s + engine_s)


def test_a_long_prompt_is_bound_by_arithmetic(deployment: Deployment) -> None:
    """8192 tokens of 70 billion weights: 2 * 8192 * 68.45e9 FLOP over eight chips in FP8."""
    light_s = 2 * 8192 * 80 * 855_638_016 / 8 / PEAK["fp8"]
    rows = table(deployment.timer, "prompt of 8192")
    products = ("qkv_projection", "output_projection", "mlp_gate_up", "mlp_down")
    assert sum(float(rows[name].compute_s) for name in products) == pytest.approx(light_s)
    assert all(rows[name].bound == "compute" for name in (*products, "attention_prefill"))
    assert rows["lm_head"].bound == "memory"  # one row: the last token of the prompt
    mfu = light_s / deployment.timer.seconds(PROMPT)
    assert 0.15 < mfu < 0.6


def test_decode_of_a_small_batch_is_bound_by_memory(deployment: Deployment) -> None:
    rows = table(deployment.timer, "batch 64")
    for name in ("mlp_gate_up", "mlp_down", "lm_head"):
        assert rows[name].bound == "memory", name
    attention = rows["attention_decode"]
    assert attention.memory_s > attention.compute_s
