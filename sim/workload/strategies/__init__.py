"""Strategies of test-time compute: ways to spend many calls, or long ones, on one question.

Each module has one kind or a family of them. Those that hold other strategies name the union of
all kinds, so that it is made with the package.
"""

from sim.workload.strategies.kinds import StrategyKind

__all__ = ["StrategyKind"]
