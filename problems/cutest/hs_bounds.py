"""Problems of Hock and Schittkowski with bounds on x, alone or beside equations; two that were made of theirs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, cos, exp, log, sin

from .definition import Definition
from .hock_schittkowski import BOOK, ENERGIES, ROOT2, balances, hs111_equality, hs111_objective

POWER = (48.4 / 50.176 * math.sin(0.25), 48.4 / 50.176 * math.cos(0.25))  # c and d of HS107

# HS119: f sums over these pairs (i, j), the numbers of columns j by rows i.
PAIRS = {
    **{1: (1, 4, 7, 8, 16), 2: (2, 3, 7, 10), 3: (3, 7, 9, 10, 14), 4: (4, 7, 11, 15), 5: (5, 6, 10, 12, 16), 6: (6, 8, 15)},
    **{7: (7, 11, 13), 8: (8, 10, 15), 9: (9, 12, 16), 10: (10, 14), 11: (11, 13), 12: (12, 14), 13: (13, 14), 14: (14,)},
    **{15: (15,), 16: (16,)},
}
# Columns 1 to 9 of the equations of HS119, where x_8+i stands alone in the equation i, and their right sides.
FLOWS = (
    (0.22, 0.20, 0.19, 0.25, 0.15, 0.11, 0.12, 0.13, 0),
    (-1.46, 0, -1.30, 1.82, -1.15, 0, 0.80, 0, 0),
    (1.29, -0.89, 0, 0, -1.16, -0.96, 0, -0.49, 0),
    (-1.10, -1.06, 0.95, -0.54, 0, -1.78, -0.41, 0, 0),
    (0, 0, 0, -1.43, 1.51, 0.59, -0.33, -0.43, 0),
    (0, -1.72, -0.33, 0, 1.62, 1.24, 0.21, -0.26, 0),
    (1.12, 0, 0, 0.31, 0, 0, 1.12, 0, -0.36),
    (0, 0.45, 0.26, -1.10, 0.58, 0, -1.03, 0.10, 0),
)
SUPPLY = (2.5, 1.1, -3.1, -3.5, 1.3, 2.1, 2.3, -1.5)


def rosenbrock(x1: Tensor, x2: Tensor) -> Tensor:
    return 100 * (x2 - x1**2) ** 2 + (1 - x1) ** 2


def normal(z: Tensor) -> Tensor:
    """The standard normal distribution function."""
    return torch.special.ndtr(z)


def hs25_objective(x1: Tensor, x2: Tensor, x3: Tensor) -> Tensor:
    """Squared differences of a Weibull distribution and i/100, i = 1, ..., 99."""
    t = torch.arange(1, 100, dtype=x1.dtype, device=x1.device) / 100
    u = 25 + (-50 * log(t)) ** (2 / 3)
    return ((exp(-((u - x2) ** x3) / x1) - t) ** 2).sum()


def hs54_objective(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor, x5: Tensor, x6: Tensor) -> Tensor:
    """Minus a normal density, x1 and x2 correlated."""
    z1, z2, z3 = (x1 - 1e4) / 8e3, x2 - 1, (x3 - 2e6) / 7e6
    z4, z5, z6 = (x4 - 10) / 50, (x5 - 1e-3) / 0.05, (x6 - 1e8) / 5e8
    return -exp(-((z1**2 + 0.4 * z1 * z2 + z2**2) / 0.96 + z3**2 + z4**2 + z5**2 + z6**2) / 2)


def hs62_objective(x1: Tensor, x2: Tensor, x3: Tensor) -> Tensor:
    z1, z2, z3 = x1 + x2 + x3 + 0.03, x2 + x3 + 0.03, x3 + 0.03
    return -32.174 * (
        255 * log(z1 / (0.09 * x1 + x2 + x3 + 0.03))
        + 280 * log(z2 / (0.07 * x2 + x3 + 0.03))
        + 290 * log(z3 / (0.13 * x3 + 0.03))
    )


def chart(a: float, b: float, n: float):
    """HS68 and HS69: the cost of a control chart, x1 the interval between samples of size n and x2 the control limit."""

    def objective(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor) -> Tensor:
        grown = torch.expm1(x1)
        return (a * n - (b * grown - x3) * x4 / (grown + x4)) / x1

    def equality(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor) -> list[Tensor]:
        root = math.sqrt(n)
        return [x3 - 2 * normal(-x2), x4 - normal(-x2 + root) - normal(-x2 - root)]

    return objective, equality


def hs107_equality(
    x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor, x5: Tensor, x6: Tensor, x7: Tensor, x8: Tensor, x9: Tensor
) -> list[Tensor]:
    """Real and reactive power at three nodes with voltages x5, x6, x7 and angles x8, x9."""
    c, d = POWER
    y1, y2, y3, y4, y5, y6 = sin(x8), cos(x8), sin(x9), cos(x9), sin(x8 - x9), cos(x8 - x9)
    return [
        0.4 - x1 + 2 * c * x5**2 - x5 * x6 * (d * y1 + c * y2) - x5 * x7 * (d * y3 + c * y4),
        0.4 - x2 + 2 * c * x6**2 + x5 * x6 * (d * y1 - c * y2) + x6 * x7 * (d * y5 - c * y6),
        0.8 + 2 * c * x7**2 + x5 * x7 * (d * y3 - c * y4) - x6 * x7 * (d * y5 + c * y6),
        0.2 - x3 + 2 * d * x5**2 + x5 * x6 * (c * y1 - d * y2) + x5 * x7 * (c * y3 - d * y4),
        0.2 - x4 + 2 * d * x6**2 - x5 * x6 * (c * y1 + d * y2) - x6 * x7 * (c * y5 + d * y6),
        -0.337 + 2 * d * x7**2 - x5 * x7 * (c * y3 + d * y4) + x6 * x7 * (c * y5 - d * y6),
    ]


def hs119_objective(x: Tensor) -> Tensor:
    """sum over PAIRS of q_i q_j, q = x^2 + x + 1."""
    q = x**2 + x + 1
    return torch.stack([q[i - 1] * q[j - 1] for i, columns in PAIRS.items() for j in columns]).sum()


def hs119_equality(x: Tensor) -> Tensor:
    return x.new_tensor(FLOWS) @ x[:9] + x[8:] - x.new_tensor(SUPPLY)


HS68, HS69 = chart(0.0001, 1, 24), chart(0.1, 1000, 4)

HS_BOUNDS = {
    "HS1": Definition(
        f=rosenbrock, low=(None, -1.5), start=(-2, 1), optimum=0, solution=(1, 1), source=f"{BOOK} 1: Rosenbrock's function"
    ),
    "HS2": Definition(
        f=rosenbrock,
        low=(None, 1.5),
        start=(-2, 1),
        optimum=0.0504261878936071,
        solution=(1.224370748736, 1.5),
        source=f"{BOOK} 2: Rosenbrock's function",
        note="a local minimum with f = 4.94 near (-1.22, 1.5)",
    ),
    "HS3": Definition(
        f=lambda x1, x2: x2 + 1e-5 * (x2 - x1) ** 2,
        low=(None, 0),
        start=(10, 1),
        optimum=0,
        solution=(0, 0),
        source=f"{BOOK} 3",
    ),
    "HS3MOD": Definition(
        f=lambda x1, x2: x2 + (x2 - x1) ** 2,
        low=(None, 0),
        start=(10, 1),
        optimum=0,
        solution=(0, 0),
        source=f"{BOOK} 3, with the factor 1 in place of 1e-5",
    ),
    "HS4": Definition(
        f=lambda x1, x2: (x1 + 1) ** 3 / 3 + x2,
        low=(1, 0),
        start=(1.125, 0.125),
        optimum=8 / 3,
        solution=(1, 0),
        source=f"{BOOK} 4",
    ),
    "HS5": Definition(
        f=lambda x1, x2: sin(x1 + x2) + (x1 - x2) ** 2 - 1.5 * x1 + 2.5 * x2 + 1,
        low=(-1.5, -3),
        high=(4, 3),
        start=(0, 0),
        optimum=-math.sqrt(3) / 2 - math.pi / 3,
        solution=(0.5 - math.pi / 3, -0.5 - math.pi / 3),
        source=f"{BOOK} 5: McCormick's function",
    ),
    "HS25": Definition(
        f=hs25_objective,
        low=(0.1, 0, 0),
        high=(100, 25.6, 5),
        start=(100, 12.5, 3),
        optimum=0,
        solution=(50, 25, 1.5),
        source=f"{BOOK} 25",
        note="nearly flat at the start",
    ),
    "HS38": Definition(
        f=lambda x1, x2, x3, x4: (
            rosenbrock(x1, x2)
            + 90 * (x4 - x3**2) ** 2
            + (1 - x3) ** 2
            + 10.1 * ((x2 - 1) ** 2 + (x4 - 1) ** 2)
            + 19.8 * (x2 - 1) * (x4 - 1)
        ),
        low=-10,
        high=10,
        start=(-3, -1, -3, -1),
        optimum=0,
        solution=(1, 1, 1, 1),
        source=f"{BOOK} 38: Colville's fourth problem",
    ),
    "HS41": Definition(
        f=lambda x1, x2, x3, x4: 2 - x1 * x2 * x3,
        c=lambda x1, x2, x3, x4: [x1 + 2 * x2 + 2 * x3 - x4],
        low=0,
        high=(1, 1, 1, 2),
        start=(2, 2, 2, 2),
        optimum=52 / 27,
        solution=(2 / 3, 1 / 3, 1 / 3, 2),
        source=f"{BOOK} 41",
    ),
    "HS45": Definition(
        f=lambda x1, x2, x3, x4, x5: 2 - x1 * x2 * x3 * x4 * x5 / 120,
        low=0,
        high=(1, 2, 3, 4, 5),
        start=(2, 2, 2, 2, 2),
        optimum=1,
        solution=(1, 2, 3, 4, 5),
        source=f"{BOOK} 45",
    ),
    "HS53": Definition(
        f=lambda x1, x2, x3, x4, x5: (x1 - x2) ** 2 + (x2 + x3 - 2) ** 2 + (x4 - 1) ** 2 + (x5 - 1) ** 2,
        c=lambda x1, x2, x3, x4, x5: [x1 + 3 * x2, x3 + x4 - 2 * x5, x2 - x5],
        low=-10,
        high=10,
        start=(2, 2, 2, 2, 2),
        optimum=176 / 43,
        solution=(-33 / 43, 11 / 43, 27 / 43, -5 / 43, 11 / 43),
        source=f"{BOOK} 53",
    ),
    "HS54": Definition(
        f=hs54_objective,
        c=lambda x1, x2, x3, x4, x5, x6: [x1 + 4000 * x2 - 17600],
        low=(0, -10, 0, 0, -1, 0),
        high=(2e4, 10, 1e7, 20, 1, 2e8),
        start=(6e3, 1.5, 4e6, 2, 3e-3, 5e7),
        optimum=-math.exp(-27 / 280),
        solution=(91600 / 7, 79 / 70, 2e6, 10, 1e-3, 1e8),
        source=f"{BOOK} 54",
    ),
    "HS55": Definition(
        f=lambda x1, x2, x3, x4, x5, x6: x1 + 2 * x2 + 4 * x5 + exp(x1 * x4),
        c=lambda x1, x2, x3, x4, x5, x6: [
            x1 + 2 * x2 + 5 * x5 - 6,
            x1 + x2 + x3 - 3,
            x4 + x5 + x6 - 2,
            x1 + x4 - 1,
            x2 + x5 - 2,
            x3 + x6 - 2,
        ],
        low=0,
        high=(1, None, None, 1, None, None),
        start=(1, 2, 0, 0, 0, 2),
        optimum=19 / 3,
        solution=(0, 4 / 3, 5 / 3, 1, 2 / 3, 1 / 3),
        source=f"{BOOK} 55",
        note="the equations have the rank 5; a local minimum with f = 20/3 at (1, 5/3, 1/3, 0, 1/3, 5/3)",
    ),
    "HS60": Definition(
        f=lambda x1, x2, x3: (x1 - 1) ** 2 + (x1 - x2) ** 2 + (x2 - x3) ** 4,
        c=lambda x1, x2, x3: [x1 * (1 + x2**2) + x3**4 - 4 - 3 * ROOT2],
        low=-10,
        high=10,
        start=(2, 2, 2),
        optimum=0.0325682002550698,
        solution=(1.104859019733, 1.196674182288, 1.535262260325),
        source=f"{BOOK} 60",
    ),
    "HS62": Definition(
        f=hs62_objective,
        c=lambda x1, x2, x3: [x1 + x2 + x3 - 1],
        low=0,
        high=1,
        start=(0.7, 0.2, 0.1),
        optimum=-26272.5144873183,
        solution=(0.6178126908127, 0.3282022231197, 0.05398508606764),
        source=f"{BOOK} 62",
    ),
    "HS63": Definition(
        f=lambda x1, x2, x3: 1000 - x1**2 - 2 * x2**2 - x3**2 - x1 * x2 - x1 * x3,
        c=lambda x1, x2, x3: [8 * x1 + 14 * x2 + 7 * x3 - 56, x1**2 + x2**2 + x3**2 - 25],
        low=0,
        start=(2, 2, 2),
        optimum=961.715172130052,
        solution=(3.512121341875, 0.2169879415152, 3.552171154827),
        source=f"{BOOK} 63",
    ),
    "HS68": Definition(
        f=HS68[0],
        c=HS68[1],
        low=(0.0001, 0, 0, 0),
        high=(100, 100, 2, 2),
        start=(1, 1, 1, 1),
        optimum=-0.920425003639751,
        solution=(0.06785857708551, 3.646210855688, 0.0002661356252154, 0.8948550393736),
        source=f"{BOOK} 68: a control chart",
    ),
    "HS69": Definition(
        f=HS69[0],
        c=HS69[1],
        low=(0.0001, 0, 0, 0),
        high=(100, 100, 2, 2),
        start=(1, 1, 1, 1),
        optimum=-956.712886650028,
        solution=(0.02937141742171, 1.190253450407, 0.2339467906674, 0.7916678112438),
        source=f"{BOOK} 69: a control chart",
    ),
    "HS80": Definition(
        f=lambda x1, x2, x3, x4, x5: exp(x1 * x2 * x3 * x4 * x5),
        c=lambda x1, x2, x3, x4, x5: [
            x1**2 + x2**2 + x3**2 + x4**2 + x5**2 - 10,
            x2 * x3 - 5 * x4 * x5,
            x1**3 + x2**3 + 1,
        ],
        low=(-2.3, -2.3, -3.2, -3.2, -3.2),
        high=(2.3, 2.3, 3.2, 3.2, 3.2),
        start=(-2, 2, 2, -1, -1),
        optimum=0.053949847770272,
        solution=(-1.717143570394, 1.595709690184, 1.827245752927, -0.7636430781841, -0.7636430781841),
        unique=False,
        source=f"{BOOK} 80",
    ),
    "HS81": Definition(
        f=lambda x1, x2, x3, x4, x5: exp(x1 * x2 * x3 * x4 * x5) - 0.5 * (x1**3 + x2**3 + 1) ** 2,
        c=lambda x1, x2, x3, x4, x5: [
            x1**2 + x2**2 + x3**2 + x4**2 + x5**2 - 10,
            x2 * x3 - 5 * x4 * x5,
            x1**3 + x2**3 + 1,
        ],
        low=(-2.3, -2.3, -3.2, -3.2, -3.2),
        high=(2.3, 2.3, 3.2, 3.2, 3.2),
        start=(-2, 2, 2, -1, -1),
        optimum=0.053949847770272,
        solution=(-1.717143570394, 1.595709690184, 1.827245752927, -0.7636430781841, -0.7636430781841),
        unique=False,
        source=f"{BOOK} 81",
    ),
    "HS107": Definition(
        f=lambda x1, x2, x3, x4, x5, x6, x7, x8, x9: 3000 * x1 + 1000 * x1**3 + 2000 * x2 + 666.667 * x2**3,
        c=hs107_equality,
        low=(0, 0, None, None, 0.90909, 0.90909, 0.90909, None, None),
        high=(None, None, None, None, 1.0909, 1.0909, 1.0909, None, None),
        start=(0.8, 0.8, 0.2, 0.2, 1.0454, 1.0454, 1.0454, 0, 0),
        optimum=5055.01180354382,
        solution=(
            *(0.6670127623153, 1.022384717051, 0.2282871446675, 0.1848217561298, 1.0909),
            *(1.0909, 1.069036003143, 0.1066106224066, -0.3387876190699),
        ),
        unique=False,
        source=f"{BOOK} 107: the loads of two generators",
        note="x8 and x9 are angles",
    ),
    "HS110": Definition(
        f=lambda x: (log(x - 2) ** 2 + log(10 - x) ** 2).sum() - x.prod() ** 0.2,
        vector=True,
        low=2.001,
        high=9.999,
        start=(9,) * 10,
        optimum=-45.7784697074463,
        solution=(9.350265833069,) * 10,
        source=f"{BOOK} 110",
    ),
    "HS111": Definition(
        f=hs111_objective,
        c=hs111_equality,
        vector=True,
        low=-100,
        high=100,
        start=(-2.3,) * 10,
        optimum=-47.7610908593659,
        solution=(
            *(-3.202311588551, -1.912366597081, -0.2444267477504, -6.561177271658, -0.7230979632953),
            *(-7.274232280188, -3.597237422328, -4.020316730691, -3.28837688136, -2.334371739221),
        ),
        source=f"{BOOK} 111: HS112 in logarithms",
    ),
    "HS112": Definition(
        f=lambda x: (x * (x.new_tensor(ENERGIES) + log(x / x.sum()))).sum(),
        c=balances,
        vector=True,
        low=1e-6,
        start=(0.1,) * 10,
        optimum=-47.7610908593659,
        solution=(
            *(0.04066808735569, 0.1477303543408, 0.7831533540092, 0.00141421980903, 0.4852466486993),
            *(0.0006931720784211, 0.027399310714, 0.01794727958493, 0.03731436591303, 0.09687132386578),
        ),
        source=f"{BOOK} 112: chemical equilibrium",
        note="the book has f = -47.707579",
    ),
    "HS119": Definition(
        f=hs119_objective,
        c=hs119_equality,
        vector=True,
        low=0,
        high=5,
        start=(10,) * 16,
        optimum=244.899697516801,
        solution=(
            *(0.03984735141112, 0.7919831556884, 0.202870330251, 0.8443579163657, 1.269906452867),
            *(0.9347387078246, 1.681961969247, 0.1553008773896, 1.567870333552, 0),
            *(0, 0, 0.660204066087, 0, 0.6742559268683),
            *(0,),
        ),
        source=f"{BOOK} 119: Colville's seventh problem",
    ),
}
