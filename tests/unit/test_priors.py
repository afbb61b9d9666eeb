"""Priors: laws of a donor on a chip that nobody measured, and what is known of it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pocket_chip import CHIP, DECODE_LAW, EXPERT_LAW, GEMM_LAW, calibration, figure

from sim.catalog import open_catalog
from sim.efficiency import GemmLaw
from sim.errors import InputError
from sim.figures import Figure
from sim.hardware import Accelerator, Achieved
from sim.priors import FamilyPrior, Prior, Ratios, scaled
from sim.units import Dtype

CATALOG = open_catalog()


def rule(**values: float) -> FamilyPrior:
    """Build a prior of the pocket chip's family; ratios are 1 unless given."""
    defaults = {"compute_ratio": 1.0, "memory_ratio": 1.0, "floor_ratio": 1.0}
    figures = {
        name: Figure[float](value=value, source="by hand", confidence="estimate")
        for name, value in (defaults | {"spread_fraction": 0.3} | values).items()
    }
    return FamilyPrior.model_validate(
        {"family": "pocket", "about": "by hand", "donor": "pocket"}
        | {name: each.model_dump() for name, each in figures.items()}
    )


def chip(
    gemm_flop_per_s: dict[Dtype, float] | None = None, read_bytes_per_s: float | None = None
) -> Accelerator:
    """The pocket chip with rates that somebody measured."""
    achieved = Achieved(
        gemm_flop_per_s={name: figure(rate) for name, rate in (gemm_flop_per_s or {}).items()},
        read_bytes_per_s=None if read_bytes_per_s is None else figure(read_bytes_per_s),
    )
    return CHIP.model_copy(update={"achieved": achieved})


class TestRatios:
    def test_of_the_family_where_nothing_is_known(self) -> None:
        found = Prior(rule(compute_ratio=0.8, memory_ratio=0.9), CHIP, calibration()).ratios(CHIP)
        assert (found.of("bf16"), found.of("fp8"), found.memory) == (0.8, 0.8, 0.9)

    def test_a_measured_rate_wins_over_the_family(self) -> None:
        # 60 of 100 TFLOP/s against the donor's 80; 0.7 of 1 TB/s against 0.8 TB/s.
        donor = chip({"bf16": 80e12}, 0.8e12)
        found = Prior(rule(compute_ratio=0.3, memory_ratio=0.3), donor, calibration()).ratios(
            chip({"bf16": 60e12}, 0.7e12)
        )
        assert found.of("bf16") == pytest.approx(0.75)
        assert found.memory == pytest.approx(0.875)
        # What is not known of FP8 is taken from bf16.
        assert found.of("fp8") == found.of("bf16")

    def test_a_donor_without_such_a_rate_is_compared_by_its_law(self) -> None:
        # The donor's laws reach half of both peaks.
        found = Prior(rule(), CHIP, calibration()).ratios(chip({"bf16": 60e12}, 0.7e12))
        assert found.of("bf16") == pytest.approx(1.2)
        assert found.memory == pytest.approx(1.4)

    def test_formats_of_as_many_bytes_are_twins(self) -> None:
        found = Prior(rule(), CHIP, calibration()).ratios(chip({"fp8": 50e12}))
        assert found.of("int8") == found.of("fp8") == pytest.approx(50 / 200 / 0.5)
        assert found.of("bf16") == 1.0


class TestScaling:
    def test_fixed_times_shrink_and_efficiencies_stay_below_one(self) -> None:
        ratios = Ratios({}, other_compute=0.5, memory=3.0, fixed=0.1)
        law = scaled(GEMM_LAW, ratios, "bf16")
        assert law.floor_s == pytest.approx(1e-7)
        assert law.compute_efficiency == 0.25
        assert law.memory_efficiency == 1.0
        assert scaled(EXPERT_LAW, ratios, "bf16").pick_slowdown == pytest.approx(1 / 3)
        assert scaled(DECODE_LAW, ratios, "bf16").floor_s == pytest.approx(1e-7)

    @given(
        ratio=st.floats(0.05, 5.0),
        work_s=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
        worse=st.floats(0.1, 1.0),
    )
    def test_a_worse_ratio_is_never_faster(
        self, ratio: float, work_s: tuple[float, float], worse: float
    ) -> None:
        def seconds(law: GemmLaw) -> float:
            return law.seconds(
                compute_s=work_s[0],
                memory_s=work_s[1],
                depth=1000.0,
                conversion_s=work_s[1],
            )

        good = scaled(GEMM_LAW, Ratios({}, ratio, ratio, 1.0), "bf16")
        bad = scaled(GEMM_LAW, Ratios({}, ratio * worse, ratio * worse, 1.0), "bf16")
        assert seconds(bad) >= seconds(good) * (1 - 1e-12)

    def test_ratios_of_one_are_the_donor(self) -> None:
        laws = calibration()
        copy = Prior(rule(), CHIP, laws).stand_in(CHIP, "pocket")
        assert copy.kernels["vllm"].model_dump() == laws.kernels["vllm"].model_dump()
        assert copy.power.law == laws.power.law
        assert copy.power.inherited_from == "pocket"
        assert copy.collectives == {}


class TestShipped:
    @pytest.mark.parametrize("family", CATALOG.names("priors"))
    def test_each_leads_to_a_measured_donor_and_gives_reasons(self, family: str) -> None:
        prior = CATALOG.prior(family)
        assert prior is not None
        assert prior.rule.family == family
        for name in ("compute_ratio", "memory_ratio", "floor_ratio", "spread_fraction"):
            assert len(getattr(prior.rule, name).source) > 15, name
        # No prior claims to be better than siblings are to each other.
        assert prior.rule.spread_fraction.value >= 0.10

    def test_every_family_of_the_market_has_one(self) -> None:
        families = {
            CATALOG.accelerator(name).family
            for name in CATALOG.names("accelerators")
            if CATALOG.calibration(name) is None
        }
        assert families <= set(CATALOG.names("priors"))

    def test_chips_without_launches_have_next_to_no_floor(self) -> None:
        """Below a microsecond for a product, where the donor needs three and more."""
        for family, name in (("wafer", "wse3"), ("lpu", "groq_lpu")):
            prior = CATALOG.prior(family)
            assert prior is not None
            stand_in = prior.stand_in(CATALOG.accelerator(name), name)
            floors = [kernel.law.floor_s for kernel in stand_in.kernels["trtllm"].gemm.values()]
            assert max(floors) < 1.5e-6

    def test_a_family_without_one_has_none(self) -> None:
        assert CATALOG.prior("abacus") is None


class TestCatalogue:
    def edited(self, folder: Path, *changes: tuple[str, str], name: str = "wafer") -> Path:
        """Write a changed copy of the wafers' prior into a catalogue of the user."""
        text = CATALOG.path("priors", "wafer").read_text(encoding="utf-8")
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        target = folder / "hardware/priors" / f"{name}.yaml"
        target.parent.mkdir(parents=True)
        target.write_text(text, encoding="utf-8")
        return folder

    def test_a_donor_must_have_been_measured(self, tmp_path: Path) -> None:
        own = open_catalog([self.edited(tmp_path, ("donor: h100_sxm", "donor: tpu_v4"))])
        with pytest.raises(InputError, match="donor tpu_v4 was never measured"):
            own.validate_all()
        with pytest.raises(InputError, match="tpu_v4 was never measured"):
            own.prior("wafer")

    def test_a_donor_must_exist(self, tmp_path: Path) -> None:
        own = open_catalog([self.edited(tmp_path, ("donor: h100_sxm", "donor: h100_smx"))])
        with pytest.raises(InputError, match="unknown accelerator 'h100_smx'; did you mean"):
            own.validate_all()

    def test_a_file_is_called_after_its_family(self, tmp_path: Path) -> None:
        own = open_catalog([self.edited(tmp_path, name="waffle")])
        with pytest.raises(InputError, match="family is 'wafer' but the file is called waffle"):
            own.validate_all()

    def test_a_chip_that_nothing_stands_in_for_is_named(self, tmp_path: Path) -> None:
        text = CATALOG.path("accelerators", "wse3").read_text(encoding="utf-8")
        target = tmp_path / "hardware/accelerators/abacus.yaml"
        target.parent.mkdir(parents=True)
        target.write_text(text.replace("family: wafer", "family: abacus"), encoding="utf-8")
        with pytest.raises(InputError, match="no prior of family 'abacus' stands in"):
            open_catalog([tmp_path]).validate_all()
