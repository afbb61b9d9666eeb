"""The operators of a dense MLP on one chip, and of embeddings that every layer gets."""

from dataclasses import replace

from sim.cost.operators import DenseGemm, Operator
from sim.cost.stage import Stage


def dense_operators(stage: Stage) -> list[Operator]:
    """List the operators of the layers with a dense MLP; none where no layer has one."""
    model = stage.model
    if not model.dense_layers:
        return []
    width = stage.share(model.mlp_width)
    return list(mlp_products("mlp", stage, model.dense_layers, width, model.mlp_matrices))


def mlp_products(
    name: str, stage: Stage, layers: int, width: int, matrices: int, row_ranks: int = 1
) -> list[DenseGemm]:
    """List the products of an MLP of ``matrices`` projections, the last of which goes down.

    Parameters
    ----------
    name : str
    stage : Stage
    layers : int
        Layers of the model that have it.
    width : int
        Inner width on this chip.
    matrices : int
        3 with a gate, 2 without.
    row_ranks : int
        Chips that share the tokens.
    """
    hidden = stage.model.hidden
    if matrices == 3:
        up = stage.gemm(f"{name}_gate_up", layers, 2 * width, hidden)
    else:
        up = stage.gemm(f"{name}_up", layers, width, hidden)
    down = stage.gemm(f"{name}_down", layers, hidden, width)
    return [replace(product, row_ranks=row_ranks) for product in (up, down)]


def layer_embedding_operators(stage: Stage) -> list[Operator]:
    """List the products that mix a vector of its own into each layer (Gemma 4 E2B).

    One product finds the vectors of all layers of the stage; each layer gates its own and projects
    it back. Every tensor rank does all of it.
    """
    model = stage.model
    width = model.per_layer_embedding
    if width is None:
        return []
    return [
        replace(
            stage.gemm("layer_embedding", model.layers, stage.layers * width, model.hidden),
            calls=1,
        ),
        stage.gemm("layer_embedding_gate", model.layers, width, model.hidden),
        stage.gemm("layer_embedding_back", model.layers, model.hidden, width),
    ]
