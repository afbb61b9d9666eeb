"""Number formats: of a served model, component by component, and of the kernels that run it.

One rule lives here alone: what a chip computes in where its arithmetic lacks a format
(`compute_dtype`, `Format.on`).
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from sim.schema import StrictModel
from sim.units import DTYPE_BYTES, Dtype

ACTIVATION_BYTES = DTYPE_BYTES["bf16"]
"""Activations move between operators in 16 bits whatever the weights are."""

WEIGHT_ONLY: frozenset[Dtype] = frozenset({"int4", "mxfp4"})
"""Formats of weights alone: the product itself is computed in 16 bits or in FP8."""

_EXPERTS_ONLY: frozenset[Dtype] = frozenset({"mxfp4"})
"""Formats that quantise the routed experts alone; all else keeps 16 bits (gpt-oss model card)."""


_WIDE: tuple[Dtype, ...] = ("bf16", "fp16", "fp32")
"""What narrow weights are widened to, the first that a chip computes in."""


def compute_dtype(asked: Dtype, supported: Collection[Dtype]) -> Dtype:
    """Format in which a chip computes what was asked of it.

    A chip without arithmetic in a format keeps it in memory, where it saves traffic, and widens
    it to 16 bits on the way into the product. No chip computes in INT4.

    Parameters
    ----------
    asked
        Format of the product.
    supported
        Formats that the chip has a peak for.

    Examples
    --------
    An A100 has no FP8 arithmetic, a Hopper GPU no FP4:

    >>> compute_dtype("fp8", {"bf16", "int8"}), compute_dtype("nvfp4", {"bf16", "fp8"})
    ('bf16', 'bf16')
    >>> compute_dtype("fp8", {"bf16", "fp8"}), compute_dtype("int4", {"bf16", "fp8"})
    ('fp8', 'bf16')
    """
    if asked in supported:
        return asked
    return next((wide for wide in _WIDE if wide in supported), "bf16")


GemmFormat = Literal[
    "bf16",
    "fp8",
    "fp8_block",
    "int8",
    "nvfp4",
    "mxfp4_bf16",
    "mxfp4_fp8",
    "int8_bf16",
    "int4_bf16",
]
"""How a matrix product is quantised. ``fp8`` has one scale per tensor, ``fp8_block`` one per block
of 128; ``int8`` is SmoothQuant (w8a8); ``int8_bf16``, ``int4_bf16`` and ``mxfp4_bf16`` are formats
of weights alone, activations stay in bf16; ``mxfp4_fp8`` turns them to fp8 (w4a8)."""


class Format(NamedTuple):
    """What a matrix product computes in, stores weights in, and turns activations to."""

    compute: Dtype
    weight: Dtype
    activation: Dtype

    @property
    def weight_bytes(self) -> float:
        """Bytes per weight, scales included (`DTYPE_BYTES` says of which blocks)."""
        return DTYPE_BYTES[self.weight]

    @property
    def activation_bytes(self) -> float:
        """Bytes per activation as the product reads it."""
        return DTYPE_BYTES[self.activation]

    def on(self, supported: Collection[Dtype]) -> "Format":
        """Return the same weights as a chip computes with them: widened if it must.

        >>> FORMATS["fp8"].on({"bf16", "int8"})
        Format(compute='bf16', weight='fp8', activation='bf16')
        """
        compute = compute_dtype(self.compute, supported)
        return self if compute == self.compute else Format(compute, self.weight, "bf16")


FORMATS: Mapping[GemmFormat, Format] = MappingProxyType(
    {
        "bf16": Format("bf16", "bf16", "bf16"),
        "fp8": Format("fp8", "fp8", "fp8"),
        "fp8_block": Format("fp8", "fp8", "fp8"),
        "int8": Format("int8", "int8", "int8"),
        "nvfp4": Format("nvfp4", "nvfp4", "nvfp4"),
        "mxfp4_bf16": Format("bf16", "mxfp4", "bf16"),
        "mxfp4_fp8": Format("fp8", "mxfp4", "fp8"),
        "int8_bf16": Format("bf16", "int8", "bf16"),
        "int4_bf16": Format("bf16", "int4", "bf16"),
    }
)


def input_dtype(weights: Dtype) -> Dtype:
    """Format in which a matrix product reads its activations, by the format of its weights.

    A kernel may read them in another one (MXFP4 experts with FP8 activations): then its
    calibration says so, and the operators are told.

    >>> input_dtype("fp8"), input_dtype("int4")
    ('fp8', 'bf16')
    """
    return "bf16" if weights in WEIGHT_ONLY or weights == "fp16" else weights


class Precision(StrictModel):
    """Number formats of a served model."""

    weights: Dtype
    """Linear layers and experts; embeddings, router and LM head stay in 16 bits. MXFP4 is the
    format of the routed experts alone."""
    experts: Dtype | None = None
    """Routed experts; that of ``weights`` unless given."""
    activations: Dtype | None = None
    """What matrix products read; what goes with the format of their weights unless given."""
    kv_cache: Dtype
    """Keys and values in memory."""
    attention: Dtype = "bf16"
    """Arithmetic of prefill attention; decode attention is bound by memory."""
    collectives: Dtype = "bf16"
    """Activations on the wire between chips."""

    @property
    def dense_weights(self) -> Dtype:
        """Format of the linear layers outside the routed experts.

        >>> Precision(weights="mxfp4", kv_cache="bf16").dense_weights
        'bf16'
        """
        return "bf16" if self.weights in _EXPERTS_ONLY else self.weights

    @property
    def expert_weights(self) -> Dtype:
        """Format of the routed experts."""
        return self.experts or self.weights
