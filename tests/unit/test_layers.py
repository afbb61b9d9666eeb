"""The operators of whole models: weights that are stored, work of a token, and who sees what."""

import math

import numpy as np
import pytest

from sim.catalog import open_catalog
from sim.cost.context import seen_tokens, window_cap
from sim.cost.layers import operators, weight_bytes_per_chip
from sim.cost.operators import (
    Collective,
    DecodeAttention,
    DenseGemm,
    Elementwise,
    ExpertExchange,
    ExpertGemm,
    IndexScores,
    Operator,
    PrefillAttention,
    StateUpdate,
)
from sim.cost.work import StepShape
from sim.errors import InputError
from sim.model import GroupedQueryAttention, LinearAttention, Model
from sim.parallelism import ChipGroup, Parallelism, kv_elements_per_token_per_layer, problems
from sim.precision import Precision
from sim.routing import Routing
from sim.units import Dtype

CATALOG = open_catalog()
MODELS = {model_id: CATALOG.model(model_id) for model_id in CATALOG.names("models")}
RACK = CATALOG.system("gb300_nvl72")
SENT = Parallelism(tp=8, ep=8, expert_exchange="all_to_all")
FP8 = Precision(weights="fp8", kv_cache="fp8")
BF16 = Precision(weights="bf16", kv_cache="bf16")
ONE = Parallelism(tp=1)
WEIGHTS = DenseGemm | ExpertGemm | StateUpdate


def only(listed: tuple[Operator, ...], kind: type[Operator]) -> Operator:
    (found,) = [op for op in listed if isinstance(op, kind)]
    return found


def called(listed: tuple[Operator, ...], name: str) -> Operator:
    (found,) = [op for op in listed if op.name == name]
    return found


def holders(listed: tuple[Operator, ...]) -> list[DenseGemm | ExpertGemm | StateUpdate]:
    return [op for op in listed if isinstance(op, WEIGHTS)]


def copies(listed: tuple[Operator, ...]) -> float:
    """Bytes of the second, absorbed copy of the latent expansion, which counts as no parameter."""
    absorbed = [op for op in listed if isinstance(op, DenseGemm) and "absorb" in op.name]
    return sum(op.calls * op.batch * op.n * op.k * 2 for op in absorbed)


SPLITS = [
    Parallelism(tp=2),
    Parallelism(tp=4, pp=3),
    Parallelism(tp=8, sequence_parallel=True),
    Parallelism(tp=16),
    Parallelism(tp=2, cp=2),
    Parallelism(tp=1, attention_dp=8, ep=8, expert_exchange="all_to_all"),
    Parallelism(tp=2, attention_dp=4, ep=8, expert_exchange="all_to_all"),
    Parallelism(tp=2, attention_dp=4, ep=2, expert_exchange="all_to_all"),
    Parallelism(tp=4, attention_dp=2, ep=4),
    Parallelism(tp=1, attention_dp=16, ep=16, pp=2),
]


def legal(model: Model, split: Parallelism) -> bool:
    return not problems(split, model, RACK)


class TestStoredWeights:
    @pytest.mark.parametrize("model_id", MODELS)
    def test_one_chip_stores_every_parameter_once(self, model_id: str) -> None:
        model = MODELS[model_id]
        stored = weight_bytes_per_chip(model, ONE, BF16) - copies(operators(model, ONE, BF16))
        assert stored == 2 * model.total_parameters

    @pytest.mark.parametrize("split", SPLITS, ids=str)
    def test_all_chips_together_store_at_least_every_parameter(self, split: Parallelism) -> None:
        tried = 0
        for model_id, model in MODELS.items():
            if not legal(model, split):
                continue
            tried += 1
            own = weight_bytes_per_chip(model, split, BF16) - copies(operators(model, split, BF16))
            assert split.chips * own >= 2 * model.total_parameters * (1 - 1e-12), model_id
        assert tried >= 10

    @pytest.mark.parametrize("tp", [1, 2, 4, 8])
    def test_chips_share_llama_without_overlap(self, tp: int) -> None:
        model = MODELS["llama_3_1_70b"]
        whole = 2 * model.total_parameters
        assert tp * weight_bytes_per_chip(model, Parallelism(tp=tp), BF16) == whole

    def test_stages_share_llama_s_layers(self) -> None:
        model = MODELS["llama_3_1_70b"]
        stored = weight_bytes_per_chip(model, Parallelism(tp=1, pp=4), BF16)
        # 20 of 80 layers, and one of the two vocabulary matrices
        assert stored == 2 * (model.linear_parameters / 4 + model.embedding_parameters)

    def test_a_tied_matrix_is_stored_by_the_first_stage_and_by_the_last(self) -> None:
        model = next(model for model in MODELS.values() if model.tied_embeddings)
        alone = weight_bytes_per_chip(model, ONE, BF16)
        half = weight_bytes_per_chip(model, Parallelism(tp=1, pp=2), BF16)
        layers = alone - 2 * (model.embedding_parameters + model.table_parameters)
        most = math.ceil(model.layers / 2) / model.layers
        expected = layers * most + 2 * (model.embedding_parameters + model.table_parameters)
        assert half == pytest.approx(expected, rel=1e-12)

    def test_more_ranks_than_kv_heads_copy_them(self) -> None:
        model = MODELS["llama_3_1_70b"]
        extra = 16 * weight_bytes_per_chip(model, Parallelism(tp=16), BF16)
        extra -= 2 * model.total_parameters
        # 16 ranks keep a key and a value head each: 8 heads of 128 too many of both, 80 layers
        assert extra == 80 * 8192 * (2 * 8 * 128) * 2

    @pytest.mark.parametrize("ep", [1, 8])
    def test_latent_attention_copies_what_it_cannot_cut(self, ep: int) -> None:
        model = MODELS["deepseek_r1"]
        spread = 8 * weight_bytes_per_chip(model, Parallelism(tp=8, ep=ep), BF16)
        alone = weight_bytes_per_chip(model, ONE, BF16)
        # seven more copies of the down projection (1536 + 512 + 64 wide) and of the router
        copied = 7 * 7168 * (61 * (1536 + 576) + 58 * 256) * 2
        assert spread - alone == copied

    def test_data_parallel_ranks_copy_all_but_the_routed_experts(self) -> None:
        model = MODELS["deepseek_r1"]
        split = Parallelism(tp=1, attention_dp=8, ep=8, expert_exchange="all_to_all")
        stored = weight_bytes_per_chip(model, split, BF16)
        alone = weight_bytes_per_chip(model, ONE, BF16)
        assert stored == alone - 2 * model.routed_parameters * 7 / 8

    def test_shared_experts_are_copied_where_tokens_travel(self) -> None:
        model = MODELS["deepseek_r1"]
        cut, copied = (
            weight_bytes_per_chip(model, Parallelism(tp=8, ep=8, expert_exchange=exchange), FP8)
            for exchange in ("all_reduce", "all_to_all")
        )
        # 58 layers of a shared expert of three 7168 x 2048 matrices
        assert copied - cut == 58 * 3 * 7168 * 2048 * 7 / 8

    def test_redundant_experts_are_stored(self) -> None:
        model = MODELS["deepseek_r1"]
        split = Parallelism(tp=1, attention_dp=32, ep=32, expert_exchange="all_to_all")
        nine, eight = (
            weight_bytes_per_chip(model, split, FP8, Routing(redundant_experts=extra))
            for extra in (32, 0)
        )
        assert nine - eight == 58 * 3 * 7168 * 2048
        with pytest.raises(InputError, match="286 experts and replicas cannot be dealt"):
            operators(model, split, FP8, Routing(redundant_experts=30))

    def test_experts_cost_the_same_dealt_or_cut(self) -> None:
        model = MODELS["deepseek_r1"]
        dealt, cut = (Parallelism(tp=8, ep=ep) for ep in (8, 1))
        assert weight_bytes_per_chip(model, dealt, FP8) == weight_bytes_per_chip(model, cut, FP8)


class TestFormats:
    def test_only_linear_layers_are_quantised(self) -> None:
        model = MODELS["llama_3_1_8b"]
        linear, vocabulary = model.linear_parameters, 2 * model.embedding_parameters
        assert weight_bytes_per_chip(model, ONE, FP8) == linear * 1 + vocabulary * 2

    def test_mxfp4_is_for_experts_alone(self) -> None:
        model = MODELS["gpt_oss_120b"]
        precision = Precision(weights="mxfp4", kv_cache="bf16")
        stored = weight_bytes_per_chip(model, ONE, precision)
        rest = model.total_parameters - model.routed_parameters
        # four bits and an eight-bit scale for every 32 of them
        assert stored == model.routed_parameters * (4 + 8 / 32) / 8 + rest * 2

    def test_experts_may_have_a_format_of_their_own(self) -> None:
        model = MODELS["mixtral_8x7b"]
        mixed = Precision(weights="fp8", experts="int4", kv_cache="fp8")
        difference = weight_bytes_per_chip(model, ONE, FP8)
        difference -= weight_bytes_per_chip(model, ONE, mixed)
        # half a byte less, but a 16-bit scale for every 128
        assert difference == model.routed_parameters * (0.5 - 2 / 128)

    def test_activations_of_quantised_products(self) -> None:
        precision = Precision(weights="mxfp4", activations="fp8", kv_cache="bf16")
        listed = operators(MODELS["gpt_oss_120b"], ONE, precision)
        by_dtype = {(op.dtype, op.activation_dtype) for op in listed if isinstance(op, DenseGemm)}
        assert by_dtype == {("bf16", None)}
        experts = only(listed, ExpertGemm)
        assert isinstance(experts, ExpertGemm)
        assert (experts.dtype, experts.activation_dtype) == ("mxfp4", "fp8")

    def test_narrow_collectives(self) -> None:
        narrow = FP8.model_copy(update={"collectives": "fp8"})
        wide, thin = (
            called(operators(MODELS["llama_3_1_70b"], Parallelism(tp=8), p), "tensor_all_reduce")
            for p in (FP8, narrow)
        )
        shape = StepShape(decode_sequences=5)
        assert wide.work(shape).bytes == 5 * 8192 * 2
        assert thin.work(shape).bytes == 5 * 8192

    @pytest.mark.parametrize(
        ("weights", "dispatched"), [("bf16", 2.0), ("fp8", 1.0), ("nvfp4", 1.0), ("int4", 2.0)]
    )
    def test_results_of_experts_come_back_in_16_bits(
        self, weights: Dtype, dispatched: float
    ) -> None:
        precision = Precision(weights=weights, kv_cache="fp8")
        listed = operators(MODELS["deepseek_r1"], SENT, precision)
        halves = [op for op in listed if isinstance(op, ExpertExchange)]
        assert [op.half for op in halves] == ["dispatch", "combine"]
        assert [op.element_bytes for op in halves] == [dispatched, 2.0]


class TestWorkOfAToken:
    @pytest.mark.parametrize("model_id", MODELS)
    def test_flop_is_twice_the_weights_it_meets(self, model_id: str) -> None:
        """A prompt of one token: products with all active weights but those of the embedding."""
        model = MODELS[model_id]
        shape = StepShape(prefill_sequences=1, prefill_tokens=1)
        listed = operators(model, ONE, BF16)
        flop = sum(
            op.calls * op.work(shape).flop
            for op in listed
            if isinstance(op, DenseGemm | ExpertGemm)
        )
        met: float = model.active_parameters
        met -= 0 if model.tied_embeddings else model.embedding_parameters
        met -= sum(  # taps are no product
            op.calls * op.conv_weights for op in listed if isinstance(op, StateUpdate)
        )
        assert flop == pytest.approx(2 * met, rel=1e-12)

    @pytest.mark.parametrize("model_id", ["deepseek_r1", "deepseek_v3_2", "deepseek_v2_lite"])
    def test_absorbed_decode_meets_as_many_weights_as_prefill(self, model_id: str) -> None:
        listed = operators(MODELS[model_id], ONE, BF16)
        prompt = StepShape(prefill_sequences=1, prefill_tokens=1)
        decode = StepShape(decode_sequences=1)
        by_shape = [
            sum(op.calls * op.work(shape).flop for op in holders(listed))
            for shape in (prompt, decode)
        ]
        assert by_shape[0] == by_shape[1]

    @pytest.mark.parametrize("split", [ONE, *SPLITS], ids=str)
    def test_nothing_to_do_is_no_work(self, split: Parallelism) -> None:
        for model_id, model in MODELS.items():
            if not legal(model, split):
                continue
            listed = operators(model, split, FP8)
            for op in listed:
                assert op.work(StepShape()) == (0, 0), (model_id, op.name)
            assert len({op.name for op in listed}) == len(listed), model_id


class TestAttention:
    @pytest.mark.parametrize(
        ("model_id", "tp"),
        [
            (model_id, tp)
            for model_id, model in MODELS.items()
            for tp in (1, 8)
            if legal(model, Parallelism(tp=tp))
        ],
    )
    def test_decode_reads_what_is_cached(self, model_id: str, tp: int) -> None:
        """Per key: the elements that a token leaves on a chip, index key apart."""
        model, split = MODELS[model_id], Parallelism(tp=tp)
        decode = [op for op in operators(model, split, BF16) if isinstance(op, DecodeAttention)]
        groups = [group for group in model.attention if group.kind != "linear"]
        for op, group in zip(decode, groups, strict=True):
            if group.kind == "compressed":
                assert op.kv_elements == group.head_dim
                continue
            index = 0 if group.indexer is None else group.indexer.head_dim
            cached = kv_elements_per_token_per_layer(group, tp)
            if not (isinstance(group, GroupedQueryAttention) and group.reuses_kv):
                assert op.kv_elements == cached - index

    def test_windowed_and_full_layers_are_priced_apart(self) -> None:
        precision = Precision(weights="mxfp4", kv_cache="bf16")
        listed = operators(MODELS["gpt_oss_120b"], ONE, precision)
        decode = {op.name: op for op in listed if isinstance(op, DecodeAttention)}
        shape = StepShape(2, decode_context_tokens=2 * 5000, decode_window_tokens=2 * 128)
        seen = {name: (op.calls, op.context_tokens(shape)) for name, op in decode.items()}
        assert seen == {
            "attention_decode": (18, 10_000),
            "attention_decode_window": (18, 256),
        }

    @pytest.mark.parametrize("model_id", MODELS)
    def test_no_layer_sees_more_than_the_context(self, model_id: str) -> None:
        """With contexts beyond every cap, each layer sees its own."""
        model = MODELS[model_id]
        cap = window_cap(model) or 0
        context = 4.0 * max(cap, 10_000)
        shape = StepShape(1, context, min(context, cap))
        decode = [op for op in operators(model, ONE, BF16) if isinstance(op, DecodeAttention)]
        groups = [group for group in model.attention if not isinstance(group, LinearAttention)]
        for op, group in zip(decode, groups, strict=True):
            seen = seen_tokens(group)
            if group.kind == "compressed":
                share = 0.0
                if group.compressed_tokens is not None:
                    share = (context if seen is None else seen) / group.compressed_tokens
                assert op.context_tokens(shape) == group.window_tokens + share
            else:
                assert op.context_tokens(shape) == (context if seen is None else seen)

    def test_sparse_attention_of_deepseek_v3_2_by_hand(self) -> None:
        listed = operators(MODELS["deepseek_v3_2"], Parallelism(tp=8), FP8)
        shape = StepShape(4, 4 * 50_000, 4 * 2048)
        scores = called(listed, "index_scores_decode")
        # the indexer is not cut: 64 heads of 128 on every chip, an FP8 key and a score twice
        assert scores.work(shape) == (4 * 5e4 * 2 * 64 * 128, 4 * 5e4 * (128 + 2 * 4))
        decode = called(listed, "attention_decode_sparse")
        assert decode.work(shape).bytes == 4 * 2048 * (512 + 64)
        query, key = called(listed, "index_query"), called(listed, "index_key")
        assert isinstance(query, DenseGemm)
        assert isinstance(key, DenseGemm)
        assert (query.k, query.n) == (1536, 64 * 128)
        assert (key.k, key.n) == (7168, 128 + 64)

    def test_sparse_prompts_are_absorbed(self) -> None:
        listed = operators(MODELS["deepseek_v3_2"], Parallelism(tp=8), FP8)
        prompt = StepShape(prefill_sequences=1, prefill_tokens=4096, prefill_window_pairs=6e6)
        attention = called(listed, "attention_prefill_sparse")
        # 16 heads over latents: 576 for the score, 512 for the value
        assert attention.work(prompt).flop == 6e6 * 2 * 16 * (576 + 512)
        absorb = called(listed, "absorb_query_sparse")
        assert absorb.work(prompt).flop == 4096 * 16 * 2 * 128 * 512
        assert not [op for op in listed if op.name.startswith("latent_up")]

    def test_queries_that_are_not_compressed(self) -> None:
        """DeepSeek-V2-Lite projects 16 heads of 128 + 64 straight from the hidden vector."""
        listed = operators(MODELS["deepseek_v2_lite"], ONE, BF16)
        down, up = called(listed, "latent_down"), called(listed, "query_up")
        assert isinstance(down, DenseGemm)
        assert isinstance(up, DenseGemm)
        assert (down.k, down.n) == (2048, 512 + 64)
        assert (up.k, up.n) == (2048, 16 * 192)

    def test_state_of_qwen3_next_by_hand(self) -> None:
        """36 of 48 layers: 32 heads of 128 x 128 in 32 bits, three taps of 8192 in 16 bits."""
        listed = operators(MODELS["qwen3_next_80b_a3b"], ONE, BF16)
        update = called(listed, "linear_decode")
        assert isinstance(update, StateUpdate)
        state = 32 * 128 * 128 * 4 + 3 * (2 * 2048 + 4096) * 2
        assert (update.calls, update.state_bytes) == (36, state)
        flop, moved = update.work(StepShape(decode_sequences=5))
        # the state is read and written; queries, keys and values come in, outputs go out
        assert moved == 5 * (2 * state + (2 * 2048 + 2 * 4096) * 2)
        # decay 1, read by key 2, rank-one correction 2, read by query 2; two per tap
        assert flop == 5 * (7 * 32 * 128 * 128 + 2 * 4 * 8192)

    def test_a_chunk_of_a_prompt_is_cheaper_than_its_tokens_one_by_one(self) -> None:
        listed = operators(MODELS["qwen3_next_80b_a3b"], ONE, BF16)
        prompt = called(listed, "linear_prefill").work(StepShape(prefill_tokens=64))
        single = called(listed, "linear_decode").work(StepShape(decode_sequences=64))
        assert prompt.bytes < single.bytes / 10
        assert single.flop < prompt.flop < 4 * single.flop  # what meets inside the chunk

    def test_reused_caches_are_read_and_neither_projected_nor_stored(self) -> None:
        model = MODELS["gemma_4_e2b"]
        listed = operators(model, ONE, BF16)
        reusing = [
            (index, group)
            for index, group in enumerate(model.attention)
            if isinstance(group, GroupedQueryAttention) and group.reuses_kv
        ]
        assert reusing
        projections = [op for op in listed if op.name.startswith("qkv_projection")]
        decodes = [op for op in listed if isinstance(op, DecodeAttention)]
        for index, group in reusing:
            projection = projections[index]
            assert isinstance(projection, DenseGemm)
            assert projection.n == group.heads * group.head_dim
            assert decodes[index].kv_elements == 2 * group.kv_heads * group.head_dim

    def test_compressed_cache_of_deepseek_v4_by_hand(self) -> None:
        """V4-Flash: 512 wide entries of 4 tokens of which 512 are picked, or of 128 tokens."""
        listed = operators(MODELS["deepseek_v4_flash"], ONE, FP8)
        assert window_cap(MODELS["deepseek_v4_flash"]) == 4 * 512
        shape = StepShape(1, 100_000, 2048)
        moved = {op.name: op.work(shape).bytes for op in listed if isinstance(op, DecodeAttention)}
        assert moved == {
            "attention_decode_window": 128 * 512,
            "attention_decode_sparse": (128 + 512) * 512,
            "attention_decode_compressed": (128 + 100_000 / 128) * 512,
        }
        scores = only(tuple(op for op in listed if "decode" in op.name), IndexScores)
        assert scores.work(shape).bytes == 25_000 * (128 + 8)


class TestCollectives:
    @pytest.mark.parametrize(
        ("split", "expected"),
        [
            (Parallelism(tp=8), {"all_reduce": 122}),
            (Parallelism(tp=8, ep=8), {"all_reduce": 122}),
            (SENT, {"all_reduce": 6, "reduce_scatter": 58, "all_gather": 58}),
            (
                Parallelism(tp=8, sequence_parallel=True),
                {"reduce_scatter": 122, "all_gather": 122},
            ),
            (
                SENT.model_copy(update={"sequence_parallel": True}),
                {"reduce_scatter": 64, "all_gather": 64},
            ),
        ],
        ids=str,
    )
    def test_of_tensor_ranks(self, split: Parallelism, expected: dict[str, int]) -> None:
        """DeepSeek-R1: 61 attentions, 3 MLPs and 58 mixtures."""
        listed = operators(MODELS["deepseek_r1"], split, FP8)
        found = [op for op in listed if isinstance(op, Collective)]
        assert {op.operation: op.calls for op in found} == expected
        for op in found:
            assert op.group == ChipGroup(8, 1)
            assert op.payload_bytes(StepShape(decode_sequences=3)) == 3 * 7168 * 2

    def test_one_chip_exchanges_nothing(self) -> None:
        listed = operators(MODELS["deepseek_r1"], ONE, FP8)
        assert not [op for op in listed if isinstance(op, Collective | ExpertExchange)]

    def test_norms_over_all_heads_add_up_squares_of_tensor_ranks(self) -> None:
        """Two figures of 32 bits per token and layer; nothing where ranks have all heads."""
        model, name = MODELS["minimax_m2_5"], "norm_all_reduce"
        op = called(operators(model, Parallelism(tp=4), FP8), name)
        assert isinstance(op, Collective)
        assert (op.calls, op.ranks, op.payload_bytes(StepShape(decode_sequences=5))) == (62, 4, 40)
        ranks = operators(model, Parallelism(tp=1, attention_dp=4, ep=4), FP8)
        by_head = operators(MODELS["qwen3_235b_a22b"], Parallelism(tp=4), FP8)
        assert name not in {each.name for each in (*ranks, *by_head)}

    def test_attention_ranks_gather_tokens_and_scatter_results(self) -> None:
        split = Parallelism(tp=2, attention_dp=4, ep=8)
        listed = operators(MODELS["deepseek_r1"], split, FP8)
        gather = called(listed, "expert_all_gather")
        scatter = called(listed, "expert_reduce_scatter")
        for op, operation in ((gather, "all_gather"), (scatter, "reduce_scatter")):
            assert isinstance(op, Collective)
            assert (op.operation, op.calls, op.scope) == (operation, 58, "group")
            assert op.group == ChipGroup(ranks=4, stride=2)
            # the whole buffer: every token of all ranks
            assert op.payload_bytes(StepShape(prefill_tokens=100)) == 100 * 7168 * 2
        assert called(listed, "tensor_all_reduce").calls == 122

    def test_exchange_of_experts_that_are_cut_too(self) -> None:
        split = Parallelism(tp=2, attention_dp=4, ep=4, expert_exchange="all_to_all")
        listed = operators(MODELS["deepseek_r1"], split, FP8)
        halves = [op for op in listed if isinstance(op, ExpertExchange)]
        assert [op.group for op in halves] == [ChipGroup(4, 2)] * 2
        experts = called(listed, "experts")
        assert isinstance(experts, ExpertGemm)
        assert (experts.local_experts, experts.intermediate) == (64, 1024)

    def test_context_ranks_of_latent_attention(self) -> None:
        split = Parallelism(tp=8, cp=4)
        listed = operators(MODELS["deepseek_r1"], split, FP8)
        exchange = called(listed, "context_kv_exchange")
        combine = called(listed, "context_combine")
        for op, operation in ((exchange, "all_gather"), (combine, "all_reduce")):
            assert isinstance(op, Collective)
            assert (op.operation, op.calls, op.group) == (operation, 61, ChipGroup(4, 8))
        # a rank has a quarter of the prompt; the buffer is the 16-bit latents of all of it
        assert exchange.work(StepShape(prefill_tokens=100)).bytes == 400 * 576 * 2
        # 16 heads of 512 wide latent outputs in 16 bits, and a 32-bit denominator each
        assert combine.work(StepShape(decode_sequences=3)).bytes == 3 * 16 * (512 * 2 + 4)

    def test_stages_send_vectors_and_residuals(self) -> None:
        alone, cut = (
            operators(MODELS["llama_3_1_70b"], Parallelism(tp=tp, pp=4), FP8) for tp in (1, 8)
        )
        send = called(alone, "pipeline_send")
        assert isinstance(send, Collective)
        assert (send.calls, send.group) == (1, ChipGroup(4, 1))
        assert send.work(StepShape(prefill_tokens=10)).bytes == 10 * 2 * 8192 * 2
        # a slice from each tensor rank, put together on the other side
        assert called(cut, "pipeline_send").work(StepShape(prefill_tokens=10)).bytes == 10 * 4096
        assert called(cut, "pipeline_all_gather").work(StepShape(prefill_tokens=10)).bytes == (
            10 * 2 * 8192 * 2
        )


class TestStages:
    def test_calls_of_the_fullest_stage(self) -> None:
        """61 layers over 4 stages: 16 on the fullest, and as many of each kind in proportion."""
        listed = operators(MODELS["deepseek_r1"], Parallelism(tp=1, pp=4), FP8)
        assert called(listed, "attention_decode").calls == 16
        assert called(listed, "experts").calls == pytest.approx(58 * 16 / 61)
        assert called(listed, "lm_head").calls == 1
        assert called(listed, "norms_and_activations").calls == 16

    @pytest.mark.parametrize("model_id", MODELS)
    def test_one_stage_calls_whole_numbers(self, model_id: str) -> None:
        assert all(isinstance(op.calls, int) for op in operators(MODELS[model_id], ONE, FP8))


class TestScope:
    def test_who_sees_which_tokens(self) -> None:
        split = Parallelism(tp=2, attention_dp=4, ep=8)
        listed = operators(MODELS["deepseek_r1"], split, FP8)
        beyond = {op.name: op.scope for op in listed if op.scope != "rank"}
        assert beyond == {
            "router": "group",
            "experts": "group",
            "expert_all_gather": "group",
            "expert_reduce_scatter": "group",
            "lm_head": "head",
        }

    def test_tokens_that_travel_are_routed_by_their_own_chip(self) -> None:
        listed = operators(MODELS["deepseek_r1"], SENT, FP8)
        shared = {op.name: op.row_ranks for op in listed if isinstance(op, DenseGemm)}
        assert {name for name, ranks in shared.items() if ranks == 8} == {
            "router",
            "shared_expert_gate_up",
            "shared_expert_down",
        }


class TestElementwise:
    def test_llama_by_hand(self) -> None:
        listed = operators(MODELS["llama_3_1_70b"], Parallelism(tp=8), FP8)
        moved = only(listed, Elementwise).work(StepShape(decode_sequences=1)).bytes
        # two norms of four hidden vectors, queries in and out, two inner vectors in and one out
        assert moved == (8 * 8192 + 2 * 8 * 128 + 3 * 28672 // 8) * 2

    def test_sequence_parallel_cuts_the_norms(self) -> None:
        split = Parallelism(tp=8, sequence_parallel=True)
        listed = operators(MODELS["llama_3_1_70b"], split, FP8)
        moved = only(listed, Elementwise).work(StepShape(decode_sequences=1)).bytes
        assert moved == (8192 + 2 * 8 * 128 + 3 * 28672 // 8) * 2

    def test_activation_of_routed_experts_is_not_counted_twice(self) -> None:
        model = MODELS["mixtral_8x7b"]  # no dense layer and no shared expert
        found = only(operators(model, ONE, BF16), Elementwise)
        assert isinstance(found, Elementwise)
        assert found.elements_per_token == 8 * model.hidden + 2 * 32 * 128

    def test_layers_with_one_mixer_have_one_norm(self) -> None:
        """Nemotron 3: every layer is an attention, a state update or a mixture."""
        model = MODELS["nemotron_3_nano_30b_a3b"]
        attending = sum(group.layers for group in model.attention)
        assert attending + model.dense_layers + model.moe_layers == model.layers
        listed = operators(model, ONE, BF16)
        whole = only(listed, Elementwise)
        assert isinstance(whole, Elementwise)
        scattered = only(
            operators(model, Parallelism(tp=2, sequence_parallel=True), BF16), Elementwise
        )
        assert isinstance(scattered, Elementwise)
        # everything is cut: half of four hidden vectors per layer and of all else
        assert scattered.elements_per_token == pytest.approx(whole.elements_per_token / 2)


def test_prompts_grow_faster_than_their_length() -> None:
    """The only quadratic operators are attention and its scores."""
    listed = operators(MODELS["deepseek_v3_2"], ONE, FP8)
    short, long = (
        StepShape(prefill_sequences=1, prefill_tokens=n, prefill_pairs=n * n / 2)
        for n in (1000, 2000)
    )
    quadratic = {
        op.name
        for op in listed
        if np.all(op.work(long).flop > 3 * np.maximum(op.work(short).flop, 1.0))
    }
    assert quadratic == {"index_scores_prefill"}  # attention sees its 2048 keys: window pairs
    assert isinstance(called(listed, "attention_prefill_sparse"), PrefillAttention)
