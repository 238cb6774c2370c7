"""What the author of a bilevel solver imports, in one line: `constrained.extend`, and the oracle of two levels.

>>> from bilevel.extend import BilevelOracle, Solver, solver_state
"""

import constrained.extend as extend
from constrained.extend import *  # noqa: F403

from .hypergradients.adjoint import AdjointMethod
from .oracle import BilevelOracle, Level, LevelAt

__all__ = ["AdjointMethod", "BilevelOracle", "Level", "LevelAt"]
__all__ += extend.__all__
