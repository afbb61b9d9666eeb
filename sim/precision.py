"""Number formats of a served model, component by component."""

from sim.schema import StrictModel
from sim.units import DTYPE_BYTES, Dtype

ACTIVATION_BYTES = DTYPE_BYTES["bf16"]
"""Activations move between operators in 16 bits whatever the weights are."""

WEIGHT_ONLY: frozenset[Dtype] = frozenset({"int4", "mxfp4"})
"""Formats of weights alone: the product itself is computed in 16 bits or in FP8."""

_EXPERTS_ONLY: frozenset[Dtype] = frozenset({"mxfp4"})
"""Formats that quantise the routed experts alone; all else keeps 16 bits (gpt-oss model card)."""


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
