"""A portfolio of five shares: risk less expected return, fully invested, no short sales, at most 40 percent in one.

    min   1/2 w'C w - tolerance m'w    C = b b' + diag(v): a common factor and risks of their own
    s.t.  sum w = 1,  0 <= w <= 0.4;   start w = 1/5

H. Markowitz, Portfolio Selection, Journal of Finance 7, 1952, with numbers of our own and the tolerance 1/2. At the solution the
second share is at its upper bound and the last at its lower one; the multiplier of the budget lam then solves
sum w = 1 for w_free = C_free^-1 (tolerance m - lam - C w_bound).
"""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.core.problem import Multipliers, Point
from constrained.problem import ConstrainedProblem
from constrained.sets import Box

from .arguments import placed, whole
from .instance import ConstrainedInstance

RETURNS = (0.07, 0.12, 0.09, 0.10, 0.05)  # m, a year
FACTOR = (0.10, 0.18, 0.15, 0.22, 0.20)  # b
OWN = (0.01, 0.02, 0.02, 0.03, 0.04)  # v
TOLERANCE, MOST = 0.5, 0.4
FREE, FULL = (0, 2, 3), (1,)  # at the solution


def known(C: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """w and lam."""
    free, w = list(FREE), torch.zeros_like(m)
    w[list(FULL)] = MOST
    ones = torch.ones_like(m[free])
    inverse = torch.linalg.solve(C[free][:, free], torch.stack([TOLERANCE * m[free] - (C @ w)[free], ones], 1))
    lam = (inverse[:, 0].sum() - (1 - w.sum())) / inverse[:, 1].sum()
    w[free] = inverse[:, 0] - lam * inverse[:, 1]
    return w, lam


def portfolio(*, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> ConstrainedInstance:
    """A portfolio of mean and variance: a convex quadratic program with a budget and bounds. seed: nothing is drawn.

    >>> [round(float(share), 3) for share in portfolio().solution[0].x]
    [0.305, 0.4, 0.284, 0.011, 0.0]
    """
    whole("portfolio(seed=...)", seed, 0)
    device = placed("portfolio", dtype, device)
    m, b, v = (torch.tensor(data, dtype=torch.float64) for data in (RETURNS, FACTOR, OWN))
    C = torch.outer(b, b) + torch.diag(v)
    w, lam = known(C, m)
    gradient = C @ w - TOLERANCE * m + lam
    low, high = gradient.clamp(min=0), (-gradient).clamp(min=0)
    low[list(FREE)] = high[list(FREE)] = 0
    optimum = float(0.5 * w @ C @ w - TOLERANCE * m @ w)
    m, C, w, lam, low, high = (data.to(device, dtype) for data in (m, C, w, lam, low, high))
    x = torch.full((5,), 0.2, dtype=dtype, device=device)
    return ConstrainedInstance(
        name="portfolio",
        problem=ConstrainedProblem(
            objective=lambda w: 0.5 * w @ C @ w - TOLERANCE * m @ w, equality=lambda w: w.sum() - 1, x=x, X=Box(0, MOST)
        ),
        source="Markowitz (1952), with numbers of our own; solution by its active bounds",
        solution=(Point(w, multipliers=Multipliers(equality=lam.reshape(1), low=low, high=high)),),
        optimum=optimum,
        start=Point(x, multipliers=Multipliers(equality=torch.zeros(1, dtype=dtype, device=device))),
    )
