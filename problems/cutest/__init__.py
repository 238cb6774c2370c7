"""Equality-constrained problems of the CUTEst collection, by their SIF names.

`CUTEST` holds their definitions: 45 of the 47 problems of the sketched Newton paper (arXiv 2305.18379), `PAPER_47`, and the
first 30 by name of the others with n <= 20 and m <= n in the PyPI package sif2jax 0.0.8. `cutest(name=...)` makes an instance.

BA-L1 and BA-L1SP are left out: they are bundle adjustments whose data stand only in CUTEst's own files.
"""

from __future__ import annotations

import torch

from constrained.core.errors import OptionError
from constrained.core.problem import Multipliers, Point
from constrained.problem import ConstrainedProblem

from ..arguments import placed, whole
from ..instance import ConstrainedInstance
from .boggs_tolle import BOGGS_TOLLE
from .definition import Definition
from .equations import EQUATIONS
from .hock_schittkowski import HOCK_SCHITTKOWSKI
from .others import OTHERS

__all__ = ["CUTEST", "PAPER_47", "WITHOUT", "Definition", "cutest"]

CUTEST: dict[str, Definition] = dict(sorted({**HOCK_SCHITTKOWSKI, **BOGGS_TOLLE, **EQUATIONS, **OTHERS}.items()))

# The problems of the paper, in its order.
PAPER_47 = (
    *("HS6", "BT5", "BT9", "HS28", "BT10", "HIMMELBA", "BT12", "HS40", "BT3", "BT6", "BT11", "HS7", "GENHS28"),
    *("HS51", "SINVALNE", "BOOTH", "HS52", "HS47", "WAYSEA1NE", "HS48", "HS50", "RSNBRNE", "CUBENE", "HS77"),
    *("MWRIGHT", "ZANGWIL3", "TRIGON1NE", "BA-L1SP", "HS78", "HS56", "HELIXNE", "HS42", "HS79", "ORTHREGB"),
    *("HS100LNP", "GOTTFR", "HIMMELBE", "MOREBVNE", "WAYSEA2NE", "DENSCHNCNE", "DENSCHNFNE", "HIMMELBC"),
    *("PRICE4NE", "INTEQNE", "BA-L1", "MANCINONE", "BT2"),
)

# Names of the paper that have no definition here, with the reason.
WITHOUT = dict.fromkeys(("BA-L1", "BA-L1SP"), "a bundle adjustment whose data stand only in CUTEst's own files")


def cutest(
    *, name: str = "HS6", seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> ConstrainedInstance:
    """A problem min f(x) subject to c(x) = 0 of the CUTEst collection, by its SIF name.

    name: one of `problems.cutest.CUTEST`, where formulas and starts stand. solution: where it is known and the only one. start:
    the collection's x0 and lam0. seed: nothing is drawn.
    """
    if isinstance(name, str) and name in WITHOUT:
        raise OptionError(f"cutest(name=...): {name} is not defined here: {WITHOUT[name]}")
    if not isinstance(name, str) or name not in CUTEST:
        raise OptionError(f"cutest(name=...): expected a name in problems.cutest.CUTEST, such as 'HS6', got {name!r}")
    whole("cutest(seed=...)", seed, 0)
    device = placed("cutest", dtype, device)
    one = CUTEST[name]
    x = torch.tensor(one.start, dtype=dtype, device=device)
    lam = torch.full((len(one.equality(x)),), one.multiplier, dtype=dtype, device=device)
    return ConstrainedInstance(
        name=name,
        problem=ConstrainedProblem(objective=one.objective, equality=one.equality, x=x),
        source=f"CUTEst: {one.source}" + (f" ({one.note})" if one.note else ""),
        solution=(Point(torch.tensor(one.solution, dtype=dtype, device=device)),) if one.solution and one.unique else (),
        optimum=float(one.optimum),
        start=Point(x, multipliers=Multipliers(equality=lam)),
    )
