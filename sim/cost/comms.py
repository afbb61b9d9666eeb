"""How long the chips of one replica take to exchange data inside a scale-up domain."""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from sim.cost.operators import AllReduce, ExpertExchange
from sim.cost.work import Number
from sim.efficiency import Calibration, Collective, Engine
from sim.errors import InputError

Array = npt.NDArray[np.float64]

NCCL = "nccl"

_DEEPEP = ("deepep_low_latency", "deepep_normal")
_NVLINK = ("trtllm_nvlink",)
EXCHANGE_LIBRARIES: Mapping[Engine, tuple[tuple[str, ...], ...]] = {
    "vllm": (_DEEPEP, _NVLINK),
    "sglang": (_DEEPEP, _NVLINK),
    "trtllm": (_NVLINK, _DEEPEP),
}
"""Kernels of expert exchange that each engine can run, preferred ones first.

The two modes of DeepEP stand side by side: engines take the low-latency one for decode steps and
the normal one for prompts. TensorRT-LLM's kernels over multi-node NVLink reach vLLM and SGLang
through FlashInfer, and DeepEP is one of TensorRT-LLM's choices on Hopper.
"""


class Network:
    """Exchanges over one accelerator's scale-up network as one engine runs them.

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

    def all_reduce(self, operator: AllReduce, tokens: Number) -> tuple[Array, str]:
        """Time of one all-reduce, and where its law comes from.

        Every engine carries a custom kernel for small messages and falls back to NCCL for large
        ones, so the time is the least over the two.

        Parameters
        ----------
        operator : AllReduce
        tokens : float or array
            Tokens of the step.

        Raises
        ------
        InputError
            When no law covers this number of chips.
        """
        measured = self.calibration.collectives.get("all_reduce", {})
        laws = _covering(measured, (self.engine, NCCL), operator.ranks)
        if not laws:
            raise self._missing("all_reduce", operator.ranks, measured.values())
        size = tokens * operator.bytes_per_token
        return _fastest(laws, size), _origin("all_reduce", operator.ranks, laws)

    def expert_exchange(self, operator: ExpertExchange, tokens: Number) -> tuple[Array, str]:
        """Time of one half of an expert exchange, and where its law comes from.

        Kernels made for it are preferred; where none was measured over this number of chips it is
        an all-to-all of NCCL. The two count bytes differently: exchange kernels were measured by
        picks (`ExpertExchange.picked_bytes`), NCCL by what a rank sends
        (`ExpertExchange.sent_bytes`).

        Parameters
        ----------
        operator : ExpertExchange
        tokens : float or array
            Tokens of the step, on all ranks together.

        Raises
        ------
        InputError
            When no law covers this number of chips.
        """
        measured = self.calibration.expert_exchange.get(operator.half, {})
        for libraries in EXCHANGE_LIBRARIES[self.engine]:
            laws = _covering(measured, libraries, operator.ranks)
            if laws:
                size = operator.picked_bytes(tokens)
                return _fastest(laws, size), _origin(operator.half, operator.ranks, laws)
        general = self.calibration.collectives.get("all_to_all", {})
        laws = _covering(general, (NCCL,), operator.ranks)
        if not laws:
            known = (*measured.values(), *general.values())
            raise self._missing(f"expert {operator.half}", operator.ranks, known)
        size = operator.sent_bytes(tokens)
        return _fastest(laws, size), _origin("all_to_all", operator.ranks, laws)

    def _missing(
        self, what: str, ranks: int, known: Iterable[Mapping[int, Collective]]
    ) -> InputError:
        chips = sorted({chips for by_chips in known for chips in by_chips})
        over = f"over {', '.join(map(str, chips))}" if chips else "over no number of chips"
        return InputError(
            f"no calibration of {what} over {ranks} chips on {self.accelerator_id}; "
            f"it is known {over}"
        )


def _covering(
    measured: Mapping[str, Mapping[int, Collective]], libraries: Iterable[str], ranks: int
) -> dict[str, Collective]:
    """Pick the libraries that were measured over a number of chips."""
    return {
        library: measured[library][ranks]
        for library in libraries
        if ranks in measured.get(library, {})
    }


def _fastest(laws: Mapping[str, Collective], size: Number) -> Array:
    """Give the time of whichever library is fastest at each size."""
    payload = np.asarray(size, dtype=np.float64)
    times = [law.law.seconds(payload) for law in laws.values()]
    fastest: Array = np.minimum.reduce(times)
    return fastest


def _origin(what: str, ranks: int, laws: Mapping[str, Collective]) -> str:
    extrapolated = any(law.extrapolated for law in laws.values())
    origin = "extrapolated" if extrapolated else "fitted"
    return f"{origin}: {what} over {ranks} chips, {' or '.join(laws)}"
