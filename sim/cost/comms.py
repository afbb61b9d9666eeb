"""How long the chips of one replica take to exchange data inside a scale-up domain."""

from collections.abc import Mapping

import numpy as np

from sim.cost.work import Collective, Number
from sim.efficiency import Calibration, Engine
from sim.efficiency import Collective as MeasuredCollective
from sim.errors import InputError

Candidates = Mapping[str, Mapping[int, MeasuredCollective]]
"""Laws by library and number of chips."""


class Network:
    """Collectives of one accelerator's scale-up network as one engine runs them.

    Every engine carries a custom kernel for small messages and falls back to NCCL for large
    ones, so the time of a message is the least over the two.

    Parameters
    ----------
    accelerator_id : str
        For messages.
    calibration : Calibration
    engine : Engine
    """

    def __init__(self, accelerator_id: str, calibration: Calibration, engine: Engine) -> None:
        self.accelerator_id = accelerator_id
        self.calibration = calibration
        self.engine = engine

    def seconds(self, operator: Collective, message_bytes: Number) -> tuple[Number, str]:
        """Time of one collective, and where its law comes from.

        Parameters
        ----------
        operator : Collective
        message_bytes : float or array
            Size by the convention of nccl-tests.

        Raises
        ------
        InputError
            When no law covers this number of chips.
        """
        laws = self._laws(operator)
        fastest: Number = np.inf
        for law in laws.values():
            fastest = np.minimum(fastest, law.law.seconds(message_bytes))
        extrapolated = any(law.extrapolated for law in laws.values())
        origin = "extrapolated" if extrapolated else "fitted"
        names = " or ".join(laws)
        return fastest, f"{origin}: {operator.kind} over {operator.ranks} chips, {names}"

    def _laws(self, operator: Collective) -> dict[str, MeasuredCollective]:
        candidates: Candidates = self.calibration.collectives.get(operator.kind, {})
        wanted = (self.engine, "nccl")
        laws = {
            library: by_chips[operator.ranks]
            for library, by_chips in candidates.items()
            if library in wanted and operator.ranks in by_chips
        }
        if not laws:
            known = sorted({chips for by_chips in candidates.values() for chips in by_chips})
            raise InputError(
                f"no calibration of {operator.kind} over {operator.ranks} chips on "
                f"{self.accelerator_id}; it is known over {', '.join(map(str, known))}"
            )
        return laws
