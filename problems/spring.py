"""The lightest spring under tension and compression: wire diameter d, mean coil diameter D, number N of active coils.

    min   (N + 2) D d^2                                                                  the volume of wire, but for pi^2/4
    s.t.  1 - D^3 N / (71785 d^4) <= 0                                                   deflection
          (4 D^2 - d D) / (12566 (D d^3 - d^4)) + 1 / (5108 d^2) - 1 <= 0                shear stress
          1 - 140.45 d / (D^2 N) <= 0                                                    surge frequency
          (d + D) / 1.5 - 1 <= 0                                                         outer diameter
          0.05 <= d <= 2, 0.25 <= D <= 1.3, 2 <= N <= 15;  start (0.1, 0.5, 10)

J. S. Arora, Introduction to Optimum Design, McGraw-Hill 1989; A. D. Belegundu, A Study of Mathematical Programming Methods for
Structural Optimization, University of Iowa 1982. The first two inequalities are active at the solution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.core.problem import Multipliers, Point
from constrained.problem import ConstrainedProblem
from constrained.sets import Box

from .arguments import placed, whole
from .instance import ConstrainedInstance

LOW, HIGH = (0.05, 0.25, 2.0), (2.0, 1.3, 15.0)
SOLUTION = (0.05168906108276346, 0.35671773979944084, 11.28896575161334)
OPTIMUM = 0.012665232788319417


def objective(x: Tensor) -> Tensor:
    d, D, N = x
    return (N + 2) * D * d**2


def inequality(x: Tensor) -> Tensor:
    d, D, N = x
    return torch.stack(
        [
            1 - D**3 * N / (71785 * d**4),
            (4 * D**2 - d * D) / (12566 * (D * d**3 - d**4)) + 1 / (5108 * d**2) - 1,
            1 - 140.45 * d / (D**2 * N),
            (d + D) / 1.5 - 1,
        ]
    )


def spring(*, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> ConstrainedInstance:
    """The lightest spring under tension and compression: three unknowns, four inequalities, bounds. seed: nothing is drawn.

    >>> round(spring().optimum, 7)
    0.0126652
    """
    whole("spring(seed=...)", seed, 0)
    device = placed("spring", dtype, device)
    x = torch.tensor([0.1, 0.5, 10], dtype=dtype, device=device)
    return ConstrainedInstance(
        name="spring",
        problem=ConstrainedProblem(objective=objective, inequality=inequality, x=x, X=Box(list(LOW), list(HIGH))),
        source="Arora, Introduction to Optimum Design (1989); Belegundu (1982)",
        solution=(Point(torch.tensor(SOLUTION, dtype=dtype, device=device)),),
        optimum=OPTIMUM,
        start=Point(x, multipliers=Multipliers(inequality=torch.zeros(4, dtype=dtype, device=device))),
    )
