"""Bilevel optimization: min over x of f(x, y) where y minimises g(x, .)."""

from constrained.core.run import iterate, solve
from constrained.core.solver import Point

from . import recommend as _recommend  # registers the default solver
from .hypergradient import hypergradient
from .problem import BilevelProblem
from .solvers.penalty import Penalty
