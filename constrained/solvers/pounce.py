"""Pounce: Ipopt's algorithm in Rust, from the package pounce-solver, which has wheels.

Reference
    Waechter and Biegler: On the implementation of an interior-point filter line-search algorithm for large-scale nonlinear
    programming, Math. Program. 106, 2006.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.options import Positive, Steps
from ..peers.ipopt_interface import IpoptInterface


@dataclass(frozen=True, kw_only=True)
class Pounce(IpoptInterface):
    """Ipopt's interior-point filter method (Waechter and Biegler 2006) in Rust, from the package pounce-solver.

    With exact second derivatives of f, c and h; where a function has none, a limited-memory approximation. Sparse matrices of a
    `Function` stay sparse. Bounds are kept to the last digit (`bound_relax_factor=0`).

    accuracy: its own tolerance, on its scaled problem; iterations: its limit. Raises MissingExtra where pounce is not installed.

    >>> import torch
    >>> from constrained import ConstrainedProblem, solve
    >>> x = torch.zeros(2, dtype=torch.float64)
    >>> problem = ConstrainedProblem(objective=lambda x: ((x - 1) ** 2).sum(), inequality=lambda x: x.sum() - 1, x=x)
    >>> result = solve(problem, Pounce())
    >>> result.x.round(decimals=6), result.multipliers.inequality.round(decimals=6)
    (tensor([0.5000, 0.5000], dtype=torch.float64), tensor([1.], dtype=torch.float64))

    Source: https://github.com/jkitchin/pounce; Waechter and Biegler 2006.
    """

    package: ClassVar[tuple[str, str]] = ("pounce", "pounce")
    options: ClassVar[dict[str, Any]] = {}

    tol: Positive | None = None
    accuracy: Positive = 1e-10
    iterations: Steps = 1000
