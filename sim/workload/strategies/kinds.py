"""All kinds of strategy, told apart by ``kind``."""

from typing import Annotated

from pydantic import Field

from sim.workload.strategies.agent import Agent
from sim.workload.strategies.beam import Beam
from sim.workload.strategies.budget import Budget
from sim.workload.strategies.cascade import Cascade
from sim.workload.strategies.chain import Chain
from sim.workload.strategies.dfs import DepthFirst
from sim.workload.strategies.direct import Direct
from sim.workload.strategies.dynamic import Dynamic, Level, Router
from sim.workload.strategies.graph import Graph
from sim.workload.strategies.refine import Refine
from sim.workload.strategies.revisions import Revisions
from sim.workload.strategies.samples import Samples
from sim.workload.strategies.tree import Tree

# A further kind is a class with ``kind``, ``models`` and ``control``, named here.
StrategyKind = Annotated[
    Direct
    | Chain
    | Budget
    | Samples
    | Refine
    | Revisions
    | Tree
    | Beam
    | DepthFirst
    | Agent
    | Graph
    | Cascade
    | Router
    | Dynamic,
    Field(discriminator="kind"),
]
"""Any strategy, as catalogue files and scenarios have it."""

# Strategies that hold others name this union, which exists from here on only.
for _holder in (Level, Cascade, Router, Dynamic):
    _holder.model_rebuild(_types_namespace={"StrategyKind": StrategyKind, "Level": Level})
