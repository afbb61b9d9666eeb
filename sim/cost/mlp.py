"""The operators of a dense MLP on one chip."""

from sim.cost.operators import DenseGemm, Operator
from sim.precision import Precision


def share(size: int, ranks: int) -> int:
    """Give the largest rank's part of a dimension that is cut over ranks.

    >>> share(128_256, 3)
    42752
    """
    return -(-size // ranks)


def mlp_operators(
    name: str, layers: int, hidden: int, width: int, matrices: int, precision: Precision
) -> list[Operator]:
    """List the products of an MLP of ``matrices`` projections, the last of which goes down."""
    weights = precision.dense_weights
    if matrices == 3:
        up = DenseGemm(f"{name}_gate_up", layers, "tokens", 2 * width, hidden, weights)
    else:
        up = DenseGemm(f"{name}_up", layers, "tokens", width, hidden, weights)
    return [up, DenseGemm(f"{name}_down", layers, "tokens", hidden, width, weights)]
