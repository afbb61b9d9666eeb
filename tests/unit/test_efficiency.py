"""The laws of kernel time, by hand arithmetic and by the properties every law must have."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sim.efficiency import (
    Calibration,
    CollectiveLaw,
    CollectiveLine,
    Correction,
    DecodeAttentionLaw,
    GemmLaw,
    GroupedGemmLaw,
    PowerLaw,
    PrefillAttentionLaw,
    soft_maximum,
)
from sim.errors import InputError
from sim.schema import load_yaml, validate

CALIBRATIONS = {
    path.stem: validate(Calibration, load_yaml(path))
    for path in sorted(Path(__file__).parents[2].glob("hardware/calibrations/*.yaml"))
}
ROUNDING = 1 - 1e-12

TIMES = st.floats(min_value=0.0, max_value=10.0, allow_subnormal=False)
SIZES = st.floats(min_value=0.0, max_value=1e11, allow_subnormal=False)


def all_of(family: str) -> Iterator[object]:
    for calibration in CALIBRATIONS.values():
        for engine in calibration.kernels.values():
            kernels = getattr(engine, family)
            yield from (
                kernel.law
                for kernel in (kernels if isinstance(kernels, tuple) else kernels.values())
            )


def all_collectives() -> Iterator[CollectiveLaw]:
    for calibration in CALIBRATIONS.values():
        for group in (calibration.collectives, calibration.expert_exchange):
            for libraries in group.values():
                for by_chips in libraries.values():
                    yield from (collective.law for collective in by_chips.values())


GEMMS = st.sampled_from([law for law in all_of("gemm") if isinstance(law, GemmLaw)])
GROUPED = st.sampled_from(
    [law for law in all_of("grouped_gemm") if isinstance(law, GroupedGemmLaw)]
)
CORRECTED = GEMMS.filter(lambda law: law.correction is not None)
CORRECTED_EXPERTS = GROUPED.filter(lambda law: law.correction is not None)
TOKENS = st.floats(min_value=0.0, max_value=1e5, allow_subnormal=False)
DECODES = st.sampled_from(
    [
        law
        for family in ("decode_attention", "mla_decode")
        for law in all_of(family)
        if isinstance(law, DecodeAttentionLaw)
    ]
)
PREFILLS = st.sampled_from(
    [
        law
        for family in ("prefill_attention", "mla_prefill")
        for law in all_of(family)
        if isinstance(law, PrefillAttentionLaw)
    ]
)
COLLECTIVES = st.sampled_from(list(all_collectives()))


class TestByHand:
    def test_soft_maximum_of_a_right_triangle_is_its_long_side(self) -> None:
        assert soft_maximum(2.0, 5.0, 12.0) == pytest.approx(13.0)

    def test_a_sharp_maximum_is_the_largest_bound(self) -> None:
        # 16th root of 1 + 2^-16, about 1 + 2^-20.
        assert soft_maximum(16.0, 1.0, 0.5) == pytest.approx(1.0, rel=2e-6)

    def test_gemm_bound_by_depth(self) -> None:
        # An inner product of 8,192 at 1 ns each, whatever the peaks are, plus a floor of 3 us.
        law = GemmLaw(
            floor_s=3e-6,
            compute_efficiency=1.0,
            memory_efficiency=1.0,
            depth_s=1e-9,
            sharpness=3.0,
            conversion_slowdown=5.0,
        )
        assert law.seconds(
            compute_s=0.0, memory_s=0.0, depth=8192.0, conversion_s=0.0
        ) == pytest.approx(11.192e-6)

    def test_a_short_inner_product_pays_for_its_tile(self) -> None:
        # 2 + 10/0.5 * (1 + 256/512) = 32 us; along a k sixteen times as long 2 + 20 * (1 + 1/32).
        law = GemmLaw(
            floor_s=2e-6,
            compute_efficiency=0.5,
            memory_efficiency=1.0,
            depth_s=0.0,
            sharpness=16.0,
            conversion_slowdown=0.0,
            tile_depth=256.0,
        )
        short_s, long_s = (
            law.seconds(compute_s=10e-6, memory_s=0.0, depth=depth, conversion_s=0.0)
            for depth in (512.0, 8192.0)
        )
        assert short_s == pytest.approx(32e-6)
        assert long_s == pytest.approx(22.625e-6)

    def test_gemm_of_llama_70b_on_one_h100(self) -> None:
        # w[28672, 8192] in bf16 is 469.8 MB: at 3.35 TB/s 140 us. Its 64-token product cannot be
        # faster than that, and a kernel that reaches 70 % or more of the bandwidth needs < 204 us.
        law = CALIBRATIONS["h100_sxm"].kernels["trtllm"].gemm["bf16"].law
        memory_s = 2 * 28672 * 8192 / 3.35e12
        compute_s = 2 * 64 * 28672 * 8192 / 989e12
        took_s = law.seconds(compute_s=compute_s, memory_s=memory_s, depth=8192.0, conversion_s=0.0)
        assert memory_s == pytest.approx(140.2e-6, rel=1e-3)
        assert memory_s < took_s < memory_s / 0.7

    def test_grouped_gemm_adds_picks_and_tokens(self) -> None:
        law = GroupedGemmLaw(
            floor_s=1e-6,
            compute_efficiency=0.5,
            memory_efficiency=0.25,
            sharpness=2.0,
            pick_slowdown=10.0,
            token_slowdown=100.0,
        )
        # 1 + sqrt(6^2 + 8^2) + 10 * 0.1 + 100 * 0.01 = 13 us.
        assert law.seconds(
            compute_s=3e-6, memory_s=2e-6, pick_s=1e-7, token_s=1e-8, local_experts=8.0
        ) == pytest.approx(13e-6)

    def test_decode_splits_into_constant_and_slope(self) -> None:
        law = DecodeAttentionLaw(
            floor_s=10e-6,
            memory_efficiency=0.8,
            compute_efficiency=1.0,
            sharpness=4.0,
            idle_rows=16.0,
            row_s=1e-8,
        )
        # 64 sequences with 8 KV heads, 512 rows: 10 + 5.12 us, and 1.25 * (1 + 16/512) per second.
        constant_s, slope = law.line(rows=512.0, memory_s=1.0, compute_s=0.0)
        assert constant_s == pytest.approx(15.12e-6)
        assert slope == pytest.approx(1.25 * 1.03125)

    def test_collective_takes_the_cheapest_line(self) -> None:
        one_shot = CollectiveLine(start_s=3e-6, seconds_per_byte=2e-11)
        ring = CollectiveLine(start_s=2e-5, seconds_per_byte=4e-12)
        law = CollectiveLaw(lines=(one_shot, ring))
        # They meet where 17 us = 1.6e-11 s/byte * size: at 1.0625 MB, after 24.25 us.
        assert law.seconds(1.0625e6) == pytest.approx(24.25e-6)
        assert law.seconds(1e6) == pytest.approx(23e-6)
        assert law.seconds(1e7) == pytest.approx(60e-6)

    def test_power_never_exceeds_the_board_limit(self) -> None:
        law = PowerLaw(active_fraction=0.4, compute_weight=1.0, memory_weight=1.0)
        assert law.watts(
            tdp_w=1000.0, idle_w=140.0, busy=1.0, compute_utilization=0.8, memory_utilization=0.4
        ) == pytest.approx(1000.0)
        assert law.watts(
            tdp_w=1000.0, idle_w=140.0, busy=0.0, compute_utilization=0.0, memory_utilization=0.0
        ) == pytest.approx(140.0)

    def test_an_array_gives_what_its_numbers_give(self) -> None:
        law = CALIBRATIONS["b200_sxm"].kernels["trtllm"].gemm["nvfp4"].law
        tokens = np.array([1.0, 64.0, 4096.0])
        together = law.seconds(
            compute_s=tokens * 1e-8,
            memory_s=tokens * 0 + 1e-5,
            depth=7168.0,
            conversion_s=tokens * 0,
        )
        apart = [
            law.seconds(compute_s=m * 1e-8, memory_s=1e-5, depth=7168.0, conversion_s=0.0)
            for m in tokens.tolist()
        ]
        assert together == pytest.approx(apart, rel=1e-12)


class TestCorrection:
    GRID = Correction(work_s=(1e-6, 1e-4), sizes=(1.0, 16.0), factors=((1.0, 1.0), (1.44, 1.21)))

    def law(self) -> GroupedGemmLaw:
        return GroupedGemmLaw(
            floor_s=2e-6,
            compute_efficiency=0.5,
            memory_efficiency=0.5,
            sharpness=1.0,
            pick_slowdown=0.0,
            token_slowdown=0.0,
            correction=self.GRID,
        )

    def seconds(self, compute_s: float, experts: float) -> float:
        return float(
            self.law().seconds(
                compute_s=compute_s, memory_s=0.0, pick_s=0.0, token_s=0.0, local_experts=experts
            )
        )

    def test_multiplies_all_but_the_floor(self) -> None:
        # 100 us of work for 16 experts: a corner, 2 + 1.21 * 100 us.
        assert self.seconds(50e-6, 16.0) == pytest.approx(123e-6)
        # 10 us is half way along the times: sqrt(1.44) = 1.2 for one expert, 1.1 for sixteen;
        # four experts are half way between those: sqrt(1.2 * 1.1).
        assert self.seconds(5e-6, 1.0) == pytest.approx(14e-6)
        assert self.seconds(5e-6, 4.0) == pytest.approx(2e-6 + 10e-6 * (1.2 * 1.1) ** 0.5)

    def test_stays_what_it_is_at_the_edge(self) -> None:
        assert self.seconds(0.5, 100.0) == pytest.approx(2e-6 + 1.21)
        assert self.seconds(0.0, 1.0) == 2e-6

    def test_never_beats_the_datasheet(self) -> None:
        grid = Correction(work_s=(1.0, 2.0), sizes=(1.0,), factors=((0.1,), (0.1,)))
        law = self.law().model_copy(update={"correction": grid, "floor_s": 0.0})
        took_s = law.seconds(
            compute_s=3.0, memory_s=1.0, pick_s=0.0, token_s=0.0, local_experts=1.0
        )
        assert took_s == 3.0

    def test_an_array_gives_what_its_numbers_give(self) -> None:
        times, none = np.array([0.0, 1e-6, 3e-5, 1.0]), np.zeros(4)
        together = self.law().seconds(
            compute_s=times, memory_s=none, pick_s=none, token_s=none, local_experts=3.0
        )
        assert together.tolist() == [self.seconds(each, 3.0) for each in times.tolist()]

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"factors": ((1.0, 1.0),)}, "expected 2 rows of 2"),
            ({"work_s": (1e-4, 1e-6)}, "must rise"),
            # Halved while the time doubles: as much work in less time beyond a slope of 0.6.
            ({"work_s": (1e-6, 2e-6), "factors": ((1.0, 1.0), (0.5, 0.5))}, "fall so fast"),
            ({"factors": ((1.0, 0.4), (1.0, 0.5))}, "fall so fast"),
        ],
    )
    def test_a_grid_that_is_none_is_refused(self, changes: dict[str, object], reason: str) -> None:
        with pytest.raises(ValidationError, match=reason):
            Correction(**(self.GRID.model_dump() | changes))

    def test_41_knots_are_too_many(self) -> None:
        times = tuple(10.0**power for power in range(41))
        with pytest.raises(ValidationError, match="at most 40"):
            Correction(work_s=times, sizes=(1.0,), factors=((1.0,),) * 41)


class TestRefusals:
    def test_an_efficiency_above_one_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="compute_efficiency"):
            PrefillAttentionLaw(floor_s=0.0, compute_efficiency=1.01, token_slowdown=1.0)

    def test_a_collective_without_lines_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="lines"):
            CollectiveLaw(lines=())

    @pytest.mark.parametrize("key", ["one", "1"])
    def test_a_group_is_a_number_of_chips(self, key: str) -> None:
        path = Path(__file__).parents[2] / "hardware/calibrations/h100_sxm.yaml"
        text = path.read_text(encoding="utf-8").replace("      '2':", f"      '{key}':", 1)
        with pytest.raises(InputError, match=f"all_reduce.*{key}"):
            validate(Calibration, load_yaml(text, "edited.yaml"))


class TestCommittedFiles:
    def test_each_is_named_after_its_accelerator(self) -> None:
        assert set(CALIBRATIONS) >= {"h100_sxm", "h200_sxm", "b200_sxm", "gb300"}
        for stem, calibration in CALIBRATIONS.items():
            assert calibration.accelerator == stem

    @given(law=GEMMS, bounds=st.tuples(TIMES, TIMES, TIMES), more=st.tuples(TIMES, TIMES, TIMES))
    def test_more_work_never_makes_a_gemm_faster(
        self, law: GemmLaw, bounds: tuple[float, ...], more: tuple[float, ...]
    ) -> None:
        less_s, more_s = (
            law.seconds(
                compute_s=compute,
                memory_s=memory,
                depth=4096.0,
                conversion_s=conversion,
            )
            for compute, memory, conversion in (bounds, np.add(bounds, more).tolist())
        )
        assert more_s >= less_s * ROUNDING
        # And no kernel beats the datasheet.
        assert less_s >= max(bounds[:2]) * ROUNDING

    @given(law=GEMMS, depth=st.floats(1.0, 65536.0), more=st.floats(0.0, 65536.0))
    def test_a_longer_inner_product_is_never_faster(
        self, law: GemmLaw, depth: float, more: float
    ) -> None:
        """Arithmetic and weights grow with ``k``; a microsecond each at 4,096."""
        short_s, long_s = (
            law.seconds(
                compute_s=1e-6 * each / 4096,
                memory_s=1e-6 * each / 4096,
                depth=each,
                conversion_s=0.0,
            )
            for each in (depth, depth + more)
        )
        assert long_s >= short_s * ROUNDING

    @given(
        law=GROUPED,
        bounds=st.tuples(TIMES, TIMES, TIMES, TIMES),
        more=st.tuples(TIMES, TIMES, TIMES, TIMES),
        experts=st.integers(1, 512),
    )
    def test_more_work_never_makes_experts_faster(
        self,
        law: GroupedGemmLaw,
        bounds: tuple[float, ...],
        more: tuple[float, ...],
        experts: int,
    ) -> None:
        less_s, more_s = (
            law.seconds(
                compute_s=compute,
                memory_s=memory,
                pick_s=pick,
                token_s=token,
                local_experts=float(experts),
            )
            for compute, memory, pick, token in (bounds, np.add(bounds, more).tolist())
        )
        assert more_s >= less_s * ROUNDING
        assert less_s >= max(bounds[:2]) * ROUNDING

    @given(
        law=CORRECTED, tokens=TOKENS, more=TOKENS, depth=st.sampled_from([512.0, 3000.0, 16384.0])
    )
    def test_more_tokens_never_make_a_corrected_gemm_faster(
        self, law: GemmLaw, tokens: float, more: float, depth: float
    ) -> None:
        """Times of microseconds to milliseconds, where the knots are; 10 us of weights."""
        less_s, more_s = (
            law.seconds(
                compute_s=1e-8 * each, memory_s=1e-5 + 1e-10 * each, depth=depth, conversion_s=0.0
            )
            for each in (tokens, tokens + more)
        )
        assert more_s >= less_s * ROUNDING

    @given(law=CORRECTED_EXPERTS, tokens=TOKENS, more=TOKENS, experts=st.integers(1, 512))
    def test_more_tokens_never_make_corrected_experts_faster(
        self, law: GroupedGemmLaw, tokens: float, more: float, experts: int
    ) -> None:
        less_s, more_s = (
            law.seconds(
                compute_s=1e-8 * each,
                memory_s=1e-6 * min(each, experts) + 1e-10 * each,
                pick_s=1e-10 * each,
                token_s=1e-10 * each,
                local_experts=float(experts),
            )
            for each in (tokens, tokens + more)
        )
        assert more_s >= less_s * ROUNDING

    def test_no_grid_has_more_than_40_knots(self) -> None:
        laws = [law for family in ("gemm", "grouped_gemm") for law in all_of(family)]
        grids = [law.correction for law in laws if isinstance(law, GemmLaw | GroupedGemmLaw)]
        knots = [len(each.work_s) * len(each.sizes) for each in grids if each is not None]
        assert len(knots) > 20
        assert max(knots) <= 40

    @given(law=DECODES, rows=st.integers(1, 8192), one_s=TIMES, more_s=TIMES)
    def test_decode_is_affine_in_the_context(
        self, law: DecodeAttentionLaw, rows: int, one_s: float, more_s: float
    ) -> None:
        constant_s, slope = law.line(rows=float(rows), memory_s=1.0, compute_s=0.25)
        whole_s = one_s + more_s
        took_s = law.seconds(rows=float(rows), memory_s=whole_s, compute_s=0.25 * whole_s)
        assert took_s == pytest.approx(constant_s + slope * whole_s, rel=1e-9)
        assert slope >= 1.0

    @given(law=DECODES, rows=st.integers(1, 8192), tiles=st.integers(1, 8), light_s=TIMES)
    def test_one_more_tile_of_heads_never_makes_decode_faster(
        self, law: DecodeAttentionLaw, rows: int, tiles: int, light_s: float
    ) -> None:
        """The cache is read once for all heads; arithmetic is in proportion to them."""
        fewer_s, more_s = (
            law.seconds(rows=float(rows), memory_s=light_s, compute_s=n * light_s, tiles=float(n))
            for n in (tiles, tiles + 1)
        )
        assert more_s >= fewer_s * ROUNDING

    @given(law=DECODES, rows=st.integers(1, 8192), row_memory_s=st.floats(1e-9, 1e-3))
    def test_one_more_row_like_the_others_never_makes_decode_faster(
        self, law: DecodeAttentionLaw, rows: int, row_memory_s: float
    ) -> None:
        fewer_s, more_s = (
            law.seconds(rows=float(n), memory_s=n * row_memory_s, compute_s=0.1 * n * row_memory_s)
            for n in (rows, rows + 1)
        )
        assert more_s >= fewer_s * ROUNDING

    @given(law=PREFILLS, bounds=st.tuples(TIMES, TIMES), more=st.tuples(TIMES, TIMES))
    def test_more_work_never_makes_prefill_faster(
        self, law: PrefillAttentionLaw, bounds: tuple[float, ...], more: tuple[float, ...]
    ) -> None:
        less_s, more_s = (
            law.seconds(compute_s=compute, token_s=token)
            for compute, token in (bounds, np.add(bounds, more).tolist())
        )
        assert more_s >= less_s * ROUNDING
        assert less_s >= bounds[0] * ROUNDING

    @given(law=COLLECTIVES, size=SIZES, more=SIZES)
    def test_more_bytes_never_make_a_collective_faster(
        self, law: CollectiveLaw, size: float, more: float
    ) -> None:
        assert law.seconds(size + more) >= law.seconds(size) * ROUNDING

    @given(size=SIZES)
    def test_a_wider_group_is_never_faster_where_it_is_extrapolated(self, size: float) -> None:
        for libraries in CALIBRATIONS["gb300"].collectives.values():
            for by_chips in libraries.values():
                wide = [
                    by_chips[chips].law.seconds(size)
                    for chips in sorted(by_chips)
                    if by_chips[chips].extrapolated
                ]
                assert len(wide) == 5
                assert wide == sorted(wide)

    def test_every_law_says_what_it_was_fitted_to_or_which_rule_made_it(self) -> None:
        for calibration in CALIBRATIONS.values():
            for libraries in calibration.collectives.values():
                for by_chips in libraries.values():
                    for collective in by_chips.values():
                        assert (collective.fit is None) == (collective.extrapolated is not None)
