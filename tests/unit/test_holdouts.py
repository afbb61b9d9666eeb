"""What stands in for a law that no run is left to tell of."""

import numpy as np
import pytest

from sim.calibration.holdouts import stand_in
from sim.calibration.overhead_fit import PRIOR, Fitted
from sim.calibration.responses import PARAMETERS


def law(value: float) -> Fitted:
    count = len(PARAMETERS)
    return Fitted(np.full(count, value), np.eye(count))


LAWS = {
    "vllm": {"hopper": law(1.0), "blackwell": law(3.0)},
    "vllm_0_6": {"ampere": law(10.0), "hopper": law(20.0)},
    "trtllm_0_14": {"ampere": law(40.0)},
    "sglang": {"hopper": law(7.0)},
}


@pytest.mark.parametrize(
    ("left_out", "asked", "expected"),
    [
        ((), ("vllm", "hopper"), 1.0),
        ((), ("vllm", "ampere"), 2.0),  # the mean of its families
        ((), ("vllm_0_6", "blackwell"), 15.0),
        (("vllm_0_6",), ("vllm_0_6", "hopper"), 40.0),  # another engine's release of that year
        (("vllm_0_6", "trtllm_0_14"), ("vllm_0_6", "hopper"), 1.0),  # the engine of today
        (("vllm_0_6", "trtllm_0_14"), ("vllm_0_6", "ampere"), 2.0),
        (("vllm",), ("vllm", "hopper"), None),  # old releases tell nothing of today's
    ],
)
def test_the_nearest_law_that_is_known(
    left_out: tuple[str, ...], asked: tuple[str, str], expected: float | None
) -> None:
    laws = {name: families for name, families in LAWS.items() if name not in left_out}
    wanted = PRIOR if expected is None else np.full(len(PARAMETERS), expected)
    assert stand_in(laws, *asked).tolist() == pytest.approx(wanted.tolist())


def test_a_refit_keeps_what_was_known_of_a_family_without_runs() -> None:
    kept = {"vllm": {"ampere": np.full(len(PARAMETERS), 5.0)}}
    assert stand_in(LAWS, "vllm", "ampere", kept).tolist() == kept["vllm"]["ampere"].tolist()
    fitted = stand_in(LAWS, "vllm", "hopper", {"vllm": {"hopper": kept["vllm"]["ampere"]}})
    assert fitted.tolist() == LAWS["vllm"]["hopper"].scaled.tolist()
