"""The equality-constrained problems of Hock and Schittkowski, and four that were made of theirs.

W. Hock and K. Schittkowski, Test Examples for Nonlinear Programming Codes, Lecture Notes in Economics and Mathematical Systems
187, Springer 1981. Signs and starts are those of CUTEst's SIF files, where they differ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, cos, exp, log, sin

from .definition import Definition

BOOK = "Hock and Schittkowski (1981), problem"
ROOT2 = math.sqrt(2)
ENERGIES = (-6.089, -17.164, -34.054, -5.914, -24.721, -14.986, -24.1, -10.708, -26.662, -22.179)  # of HS111 and HS112


def hs100_objective(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor, x5: Tensor, x6: Tensor, x7: Tensor) -> Tensor:
    """Of HS100, with inequalities, and HS100LNP, with the two of them that are active as equalities."""
    far = (x1 - 10) ** 2 + 5 * (x2 - 12) ** 2 + x3**4 + 3 * (x4 - 11) ** 2
    return far + 10 * x5**6 + 7 * x6**2 + x7**4 - 4 * x6 * x7 - 10 * x6 - 8 * x7


def hs111_objective(x: Tensor) -> Tensor:
    """sum_i e^x_i (E_i + x_i - log sum_j e^x_j): the free energy of a mixture of e^x_i moles each."""
    return (exp(x) * (x.new_tensor(ENERGIES) + x - torch.logsumexp(x, 0))).sum()


def balances(z: Tensor) -> Tensor:
    """Of three elements in z_i moles of ten compounds."""
    z1, z2, z3, z4, z5, z6, z7, z8, z9, z10 = z
    return torch.stack(
        [
            z1 + 2 * z2 + 2 * z3 + z6 + z10 - 2,
            z4 + 2 * z5 + z6 + z7 - 1,
            z3 + z7 + z8 + 2 * z9 + z10 - 1,
        ]
    )


def hs111_equality(x: Tensor) -> Tensor:
    return balances(exp(x))


HOCK_SCHITTKOWSKI = {
    "HS6": Definition(
        f=lambda x1, x2: (1 - x1) ** 2,
        c=lambda x1, x2: [10 * (x2 - x1**2)],
        start=(-1.2, 1),
        optimum=0,
        solution=(1, 1),
        source=f"{BOOK} 6",
    ),
    "HS7": Definition(
        f=lambda x1, x2: log(1 + x1**2) - x2,
        c=lambda x1, x2: [(1 + x1**2) ** 2 + x2**2 - 4],
        start=(2, 2),
        optimum=-math.sqrt(3),
        solution=(0, math.sqrt(3)),
        source=f"{BOOK} 7",
    ),
    "HS8": Definition(
        f=lambda x1, x2: torch.full_like(x1, -1),
        c=lambda x1, x2: [x1**2 + x2**2 - 25, x1 * x2 - 9],
        start=(2, 1),
        optimum=-1,
        solution=((math.sqrt(43) + math.sqrt(7)) / 2, (math.sqrt(43) - math.sqrt(7)) / 2),
        unique=False,
        source=f"{BOOK} 8",
    ),
    "HS9": Definition(
        f=lambda x1, x2: sin(math.pi * x1 / 12) * cos(math.pi * x2 / 16),
        c=lambda x1, x2: [4 * x1 - 3 * x2],
        start=(0, 0),
        optimum=-0.5,
        solution=(-3, -4),
        unique=False,
        source=f"{BOOK} 9",
        note="f is periodic along the constraint: (12 k - 3, 16 k - 4) are solutions for every integer k",
    ),
    "HS26": Definition(
        f=lambda x1, x2, x3: (x1 - x2) ** 2 + (x2 - x3) ** 4,
        c=lambda x1, x2, x3: [x1 * (1 + x2**2) + x3**4 - 3],
        start=(-2.6, 2, 2),
        optimum=0,
        solution=(1, 1, 1),
        unique=False,
        source=f"{BOOK} 26",
    ),
    "HS27": Definition(
        f=lambda x1, x2, x3: 0.01 * (x1 - 1) ** 2 + (x2 - x1**2) ** 2,
        c=lambda x1, x2, x3: [x1 + x3**2 + 1],
        start=(2, 2, 2),
        optimum=0.04,
        solution=(-1, 1, 0),
        source=f"{BOOK} 27",
    ),
    "HS28": Definition(
        f=lambda x1, x2, x3: (x1 + x2) ** 2 + (x2 + x3) ** 2,
        c=lambda x1, x2, x3: [x1 + 2 * x2 + 3 * x3 - 1],
        start=(-4, 1, 1),
        optimum=0,
        solution=(0.5, -0.5, 0.5),
        source=f"{BOOK} 28",
    ),
    "HS39": Definition(
        f=lambda x1, x2, x3, x4: -x1,
        c=lambda x1, x2, x3, x4: [x2 - x1**3 - x3**2, x1**2 - x2 - x4**2],
        start=(2, 2, 2, 2),
        optimum=-1,
        solution=(1, 1, 0, 0),
        source=f"{BOOK} 39",
        note="the same problem as BT9",
    ),
    "HS40": Definition(
        f=lambda x1, x2, x3, x4: -x1 * x2 * x3 * x4,
        c=lambda x1, x2, x3, x4: [x1**3 + x2**2 - 1, x1**2 * x4 - x3, x4**2 - x2],
        start=(0.8, 0.8, 0.8, 0.8),
        optimum=-0.25,
        solution=(2 ** (-1 / 3), 2 ** (-1 / 2), 2 ** (-11 / 12), 2 ** (-1 / 4)),
        unique=False,
        source=f"{BOOK} 40",
    ),
    "HS42": Definition(
        f=lambda x1, x2, x3, x4: (x1 - 1) ** 2 + (x2 - 2) ** 2 + (x3 - 3) ** 2 + (x4 - 4) ** 2,
        c=lambda x1, x2, x3, x4: [x1 - 2, x3**2 + x4**2 - 2],
        start=(1, 1, 1, 1),
        optimum=28 - 10 * ROOT2,
        solution=(2, 2, 0.6 * ROOT2, 0.8 * ROOT2),
        source=f"{BOOK} 42",
    ),
    "HS46": Definition(
        f=lambda x1, x2, x3, x4, x5: (x1 - x2) ** 2 + (x3 - 1) ** 2 + (x4 - 1) ** 4 + (x5 - 1) ** 6,
        c=lambda x1, x2, x3, x4, x5: [x1**2 * x4 + sin(x4 - x5) - 1, x2 + x3**4 * x4**2 - 2],
        start=(ROOT2 / 2, 1.75, 0.5, 2, 2),
        optimum=0,
        solution=(1, 1, 1, 1, 1),
        source=f"{BOOK} 46",
    ),
    "HS47": Definition(
        f=lambda x1, x2, x3, x4, x5: (x1 - x2) ** 2 + (x2 - x3) ** 3 + (x3 - x4) ** 4 + (x4 - x5) ** 4,
        c=lambda x1, x2, x3, x4, x5: [x1 + x2**2 + x3**3 - 3, x2 - x3**2 + x4 - 1, x1 * x5 - 1],
        start=(2, ROOT2, -1, 2 - ROOT2, 0.5),
        optimum=0,
        solution=(1, 1, 1, 1, 1),
        source=f"{BOOK} 47",
        note="the published point is stationary and no minimum: f = -0.0267 at (0.677, 0.726, 1.216, 1.751, 1.477)",
    ),
    "HS48": Definition(
        f=lambda x1, x2, x3, x4, x5: (x1 - 1) ** 2 + (x2 - x3) ** 2 + (x4 - x5) ** 2,
        c=lambda x1, x2, x3, x4, x5: [x1 + x2 + x3 + x4 + x5 - 5, x3 - 2 * (x4 + x5) + 3],
        start=(3, 5, -3, 2, -2),
        optimum=0,
        solution=(1, 1, 1, 1, 1),
        source=f"{BOOK} 48",
    ),
    "HS49": Definition(
        f=lambda x1, x2, x3, x4, x5: (x1 - x2) ** 2 + (x3 - 1) ** 2 + (x4 - 1) ** 4 + (x5 - 1) ** 6,
        c=lambda x1, x2, x3, x4, x5: [x1 + x2 + x3 + 4 * x4 - 7, x3 + 5 * x5 - 6],
        start=(10, 7, 2, -3, 0.8),
        optimum=0,
        solution=(1, 1, 1, 1, 1),
        source=f"{BOOK} 49",
    ),
    "HS50": Definition(
        f=lambda x1, x2, x3, x4, x5: (x1 - x2) ** 2 + (x2 - x3) ** 2 + (x3 - x4) ** 4 + (x4 - x5) ** 2,
        c=lambda x1, x2, x3, x4, x5: [x1 + 2 * x2 + 3 * x3 - 6, x2 + 2 * x3 + 3 * x4 - 6, x3 + 2 * x4 + 3 * x5 - 6],
        start=(35, -31, 11, 5, -5),
        optimum=0,
        solution=(1, 1, 1, 1, 1),
        source=f"{BOOK} 50",
    ),
    "HS51": Definition(
        f=lambda x1, x2, x3, x4, x5: (x1 - x2) ** 2 + (x2 + x3 - 2) ** 2 + (x4 - 1) ** 2 + (x5 - 1) ** 2,
        c=lambda x1, x2, x3, x4, x5: [x1 + 3 * x2 - 4, x3 + x4 - 2 * x5, x2 - x5],
        start=(2.5, 0.5, 2, -1, 0.5),
        optimum=0,
        solution=(1, 1, 1, 1, 1),
        source=f"{BOOK} 51",
    ),
    "HS52": Definition(
        f=lambda x1, x2, x3, x4, x5: (4 * x1 - x2) ** 2 + (x2 + x3 - 2) ** 2 + (x4 - 1) ** 2 + (x5 - 1) ** 2,
        c=lambda x1, x2, x3, x4, x5: [x1 + 3 * x2, x3 + x4 - 2 * x5, x2 - x5],
        start=(2, 2, 2, 2, 2),
        optimum=1859 / 349,
        solution=(-33 / 349, 11 / 349, 180 / 349, -158 / 349, 11 / 349),
        source=f"{BOOK} 52",
    ),
    "HS56": Definition(
        f=lambda x1, x2, x3, x4, x5, x6, x7: -x1 * x2 * x3,
        c=lambda x1, x2, x3, x4, x5, x6, x7: [
            x1 - 4.2 * sin(x4) ** 2,
            x2 - 4.2 * sin(x5) ** 2,
            x3 - 4.2 * sin(x6) ** 2,
            x1 + 2 * x2 + 2 * x3 - 7.2 * sin(x7) ** 2,
        ],
        start=(1, 1, 1, 0.50973968, 0.50973968, 0.50973968, 0.98511078),
        optimum=-3.456,
        solution=(2.4, 1.2, 1.2, *(math.asin(math.sqrt(part)) for part in (4 / 7, 2 / 7, 2 / 7, 1))),
        unique=False,
        source=f"{BOOK} 56",
        note="x4 to x7 are angles: with each solution go its reflections and shifts by pi",
    ),
    "HS61": Definition(
        f=lambda x1, x2, x3: 4 * x1**2 + 2 * x2**2 + 2 * x3**2 - 33 * x1 + 16 * x2 - 24 * x3,
        c=lambda x1, x2, x3: [3 * x1 - 2 * x2**2 - 7, 4 * x1 - x3**2 - 11],
        start=(0, 0, 0),
        optimum=-143.6461421977803,
        solution=(5.32677013556393, -2.11899863221898, 3.21046422535055),
        source=f"{BOOK} 61",
    ),
    "HS77": Definition(
        f=lambda x1, x2, x3, x4, x5: (x1 - 1) ** 2 + (x1 - x2) ** 2 + (x3 - 1) ** 2 + (x4 - 1) ** 4 + (x5 - 1) ** 6,
        c=lambda x1, x2, x3, x4, x5: [x1**2 * x4 + sin(x4 - x5) - 2 * ROOT2, x2 + x3**4 * x4**2 - 8 - ROOT2],
        start=(2, 2, 2, 2, 2),
        optimum=0.2415051287901787,
        solution=(1.1661721897093, 1.1821113888027, 1.38025704314546, 1.50603627362305, 0.610920196043091),
        source=f"{BOOK} 77",
    ),
    "HS78": Definition(
        f=lambda x1, x2, x3, x4, x5: x1 * x2 * x3 * x4 * x5,
        c=lambda x1, x2, x3, x4, x5: [
            x1**2 + x2**2 + x3**2 + x4**2 + x5**2 - 10,
            x2 * x3 - 5 * x4 * x5,
            x1**3 + x2**3 + 1,
        ],
        start=(-2, 1.5, 2, -1, -1),
        optimum=-2.919700408963679,
        solution=(-1.71714357039438, 1.59570969018355, 1.82724575292719, -0.76364307818413, -0.76364307818413),
        unique=False,
        source=f"{BOOK} 78",
    ),
    "HS79": Definition(
        f=lambda x1, x2, x3, x4, x5: (x1 - 1) ** 2 + (x1 - x2) ** 2 + (x2 - x3) ** 2 + (x3 - x4) ** 4 + (x4 - x5) ** 4,
        c=lambda x1, x2, x3, x4, x5: [
            x1 + x2**2 + x3**3 - 2 - 3 * ROOT2,
            x2 - x3**2 + x4 + 2 - 2 * ROOT2,
            x1 * x5 - 2,
        ],
        start=(2, 2, 2, 2, 2),
        optimum=0.07877682087105692,
        solution=(1.19112745631105, 1.36260316496174, 1.47281793151209, 1.63501661916799, 1.67908143616641),
        source=f"{BOOK} 79",
    ),
    "HS100LNP": Definition(
        f=hs100_objective,
        c=lambda x1, x2, x3, x4, x5, x6, x7: [
            127 - 2 * x1**2 - 3 * x2**4 - x3 - 4 * x4**2 - 5 * x5,
            -4 * x1**2 - x2**2 + 3 * x1 * x2 - 2 * x3**2 - 5 * x6 + 11 * x7,
        ],
        start=(1, 2, 0, 4, 0, 1, 1),
        optimum=680.630057374402,
        solution=(
            2.33049937287957,
            1.95137237289689,
            -0.477541392388872,
            4.36572623365581,
            -0.624486970526817,
            1.03813101860796,
            1.59422671161187,
        ),
        source=f"{BOOK} 100, its two active inequalities as equations and without the others (T. Plantenga, 1992)",
    ),
    "HS111LNP": Definition(
        f=hs111_objective,
        c=hs111_equality,
        vector=True,
        start=(-2.3,) * 10,
        optimum=-47.761090859365865,
        source=f"{BOOK} 111, without its bounds (T. Plantenga, 1992)",
    ),
    "GENHS28": Definition(
        f=lambda x: ((x[:-1] + x[1:]) ** 2).sum(),
        c=lambda x: x[:-2] + 2 * x[1:-1] + 3 * x[2:] - 1,
        vector=True,
        start=(-4, *(1,) * 9),
        multiplier=1.0,
        optimum=0.927173693766391,
        source=f"{BOOK} 28, for 10 variables (N. Gould, 1991)",
    ),
}
