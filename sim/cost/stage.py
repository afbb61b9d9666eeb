"""What the operators of one pipeline stage have in common: their calls, formats and shares."""

from dataclasses import dataclass, replace

from sim.cost.operators import DenseGemm
from sim.cost.work import Rows
from sim.model import Model
from sim.parallelism import Parallelism
from sim.precision import ACTIVATION_BYTES, Precision
from sim.routing import BALANCED, Routing
from sim.units import DTYPE_BYTES, Dtype


def share(size: int, ranks: int) -> int:
    """Give the largest rank's part of a dimension that is cut over ranks.

    >>> share(128_256, 3)
    42752
    """
    return -(-size // ranks)


@dataclass(frozen=True)
class Stage:
    """The slowest pipeline stage of a split model.

    It has the largest number of layers that any stage has, and of each kind of layer its
    proportion in the whole model.
    """

    model: Model
    parallelism: Parallelism
    precision: Precision
    routing: Routing = BALANCED

    @property
    def layers(self) -> int:
        """Layers of the stage.

        >>> from sim.catalog import open_catalog
        >>> model = open_catalog().model("deepseek_r1")
        >>> Stage(model, Parallelism(tp=1, pp=4), Precision(weights="fp8", kv_cache="fp8")).layers
        16
        """
        return share(self.model.layers, self.parallelism.pp)

    def calls(self, layers: int) -> float:
        """Layers of the stage that are of a kind which has so many layers in the model."""
        if self.parallelism.pp == 1:
            return layers
        return layers * self.layers / self.model.layers

    def share(self, size: int) -> int:
        """Give the largest part of a dimension that is cut over the tensor ranks."""
        return share(size, self.parallelism.tp)

    def activations(self, weights: Dtype) -> Dtype | None:
        """Format in which a product reads its activations, if the precision names one.

        16-bit weights meet 16-bit activations whatever is said of quantised ones.
        """
        narrow = DTYPE_BYTES[weights] < ACTIVATION_BYTES
        return self.precision.activations if narrow else None

    def wire_bytes(self, elements: float) -> float:
        """Bytes of activations on the wire."""
        return elements * DTYPE_BYTES[self.precision.collectives]

    def gemm(self, name: str, layers: int, n: int, k: int, rows: Rows = "tokens") -> DenseGemm:
        """Build a product with quantised weights, once in each of so many layers of the model."""
        weights = self.precision.dense_weights
        return DenseGemm(
            name,
            self.calls(layers),
            rows,
            n,
            k,
            weights,
            activation_dtype=self.activations(weights),
        )

    def unquantised(self, name: str, layers: int, n: int, k: int) -> DenseGemm:
        """Build a product with 16-bit weights, once in each of so many layers of the model."""
        product = self.gemm(name, layers, n, k)
        return replace(product, dtype="bf16", activation_dtype=None)
