"""Problems 113 to 118 of Hock and Schittkowski that have inequalities, and problem 268 of Schittkowski's second book.

K. Schittkowski, More Test Examples for Nonlinear Programming Codes, Lecture Notes in Economics and Mathematical Systems 282,
Springer 1987.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .definition import Definition
from .hock_schittkowski import BOOK
from .hs_57_to_93 import CUBIC, LINEAR, QUADRATIC, RIGHT, ROWS

# HS268: f = |D x - d|^2
D = (
    (-74, 80, 18, -11, -4),
    (14, -69, 21, 28, 0),
    (66, -72, -5, 7, 1),
    (-12, 66, -30, -23, 3),
    (3, 8, -7, -4, 1),
    (4, -12, 4, 4, 0),
)
d = (51, -61, -56, 69, 10, -12)
SIDES = ((1, 1, 1, 1, 1), (-10, -10, 3, -5, -4), (8, -1, 2, 5, -3), (-8, 1, -2, -5, 3), (4, 2, -3, 5, -1))


def hs114_equality(x: Tensor) -> Tensor:
    x1, x2, x3, x4, x5, x6, _, x8, x9, _ = x
    return torch.stack([1.22 * x4 - x1 - x5, 98000 * x3 / (x4 * x9 + 1000 * x3) - x6, (x2 + x5) / x1 - x8])


def hs114_inequality(x: Tensor) -> Tensor:
    """Four quantities q, each between a x and x / a for a tolerance a of its own."""
    x1, _, _, x4, _, x6, x7, x8, x9, x10 = x
    a, b = 0.99, 0.9
    q1, q2 = 35.82 - 0.222 * x10, 3 * x7 - 133
    q3 = 1.12 * x1 + 0.13167 * x1 * x8 - 0.00667 * x1 * x8**2
    q4 = 57.425 + 1.098 * x8 - 0.038 * x8**2 + 0.325 * x6
    below = [b * x9 - q1, a * x10 - q2, a * x4 - q3, a * x7 - q4]
    above = [q1 - x9 / b, q2 - x10 / a, q3 - x4 / a, q4 - x7 / a]
    return torch.stack([*below[:2], *above[:2], *below[2:], *above[2:]])


def hs116_inequality(x: Tensor) -> Tensor:
    """A membrane separation of three stages."""
    x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13 = x
    cost = x11 + x12 + x13
    return torch.stack(
        [
            x2 - x3,
            x1 - x2,
            0.002 * (x7 - x8) - 1,
            50 - cost,
            1.262626 * x10 - 1.231059 * x3 * x10 - x13,
            0.03475 * x2 + 0.975 * x2 * x5 - 0.00975 * x2**2 - x5,
            0.03475 * x3 + 0.975 * x3 * x6 - 0.00975 * x3**2 - x6,
            x1 * x8 + x4 * x7 - x4 * x8 - x5 * x7,
            0.002 * (x2 * x9 + x5 * x8 - x1 * x8 - x6 * x9) + x5 + x6 - 1,
            x3 * x10 + x6 * x9 + 500 * x2 - 500 * x6 - x2 * x10 - x2 * x9,
            0.9 + 0.002 * (x2 * x10 - x3 * x10) - x2,
            0.03475 * x1 + 0.975 * x1 * x4 - 0.00975 * x1**2 - x4,
            1.262626 * x8 - 1.231059 * x1 * x8 - x11,
            1.262626 * x9 - 1.231059 * x2 * x9 - x12,
            cost - 250,
        ]
    )


def hs117_objective(x: Tensor) -> Tensor:
    y, z = x[:10], x[10:]
    return -x.new_tensor(RIGHT) @ y + z @ x.new_tensor(QUADRATIC) @ z + 2 * x.new_tensor(CUBIC) @ z**3


def hs117_inequality(x: Tensor) -> Tensor:
    """A'y <= e + 2 C z + 3 d z^2."""
    y, z = x[:10], x[10:]
    gradient = x.new_tensor(LINEAR) + 2 * x.new_tensor(QUADRATIC) @ z + 3 * x.new_tensor(CUBIC) * z**2
    return x.new_tensor(ROWS).T @ y - gradient


def hs118_objective(x: Tensor) -> Tensor:
    z = x.reshape(5, 3)
    return (x.new_tensor([2.3, 1.7, 2.2]) * z + x.new_tensor([0.0001, 0.0001, 0.00015]) * z**2).sum()


def hs118_inequality(x: Tensor) -> Tensor:
    """Changes from period to period within -7 and 6, 7, 6; a demand in each."""
    z = x.reshape(5, 3)
    change = z[1:] - z[:-1]
    demand = x.new_tensor([60, 50, 70, 85, 100])
    return torch.cat([(-7 - change).reshape(-1), (change - x.new_tensor([6, 7, 6])).reshape(-1), demand - z.sum(1)])


HS_113_TO_268 = {
    "HS113": Definition(
        f=lambda x1, x2, x3, x4, x5, x6, x7, x8, x9, x10: (
            x1**2
            + x2**2
            + x1 * x2
            - 14 * x1
            - 16 * x2
            + (x3 - 10) ** 2
            + 4 * (x4 - 5) ** 2
            + (x5 - 3) ** 2
            + 2 * (x6 - 1) ** 2
            + 5 * x7**2
            + 7 * (x8 - 11) ** 2
            + 2 * (x9 - 10) ** 2
            + (x10 - 7) ** 2
            + 45
        ),
        h=lambda x1, x2, x3, x4, x5, x6, x7, x8, x9, x10: [
            4 * x1 + 5 * x2 - 3 * x7 + 9 * x8 - 105,
            10 * x1 - 8 * x2 - 17 * x7 + 2 * x8,
            5 * x9 - 8 * x1 + 2 * x2 - 2 * x10 - 12,
            3 * (x1 - 2) ** 2 + 4 * (x2 - 3) ** 2 + 2 * x3**2 - 7 * x4 - 120,
            5 * x1**2 + 8 * x2 + (x3 - 6) ** 2 - 2 * x4 - 40,
            0.5 * (x1 - 8) ** 2 + 2 * (x2 - 4) ** 2 + 3 * x5**2 - x6 - 30,
            x1**2 + 2 * (x2 - 2) ** 2 - 2 * x1 * x2 + 14 * x5 - 6 * x6,
            6 * x2 - 3 * x1 + 12 * (x9 - 8) ** 2 - 7 * x10,
        ],
        start=(2, 3, 5, 5, 1, 2, 7, 3, 6, 10),
        optimum=24.3062090681798,
        solution=(
            *(2.171996371255, 2.363682973697, 8.773925738477, 5.095984487948, 0.9906547649639),
            *(1.430573978936, 1.321644208162, 9.828725807886, 8.280091670098, 8.375926663921),
        ),
        source=f"{BOOK} 113: Wong's second problem",
    ),
    "HS114": Definition(
        f=lambda x: 5.04 * x[0] + 0.035 * x[1] + 10 * x[2] + 3.36 * x[4] - 0.063 * x[3] * x[6],
        c=hs114_equality,
        h=hs114_inequality,
        vector=True,
        low=(1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 85, 90, 3, 1.2, 145),
        high=(2000, 16000, 120, 5000, 2000, 93, 95, 12, 4, 162),
        start=(1745, 12000, 110, 3048, 1974, 89.2, 92.8, 8, 3.6, 145),
        optimum=-1768.80696371624,
        solution=(
            *(1698.094765189, 15818.61492418, 54.10268233325, 3031.225217368, 2000),
            *(90.11542219899, 95, 10.49329830671, 1.561636363636, 153.5353535354),
        ),
        source=f"{BOOK} 114: an alkylation process",
    ),
    "HS116": Definition(
        f=lambda x: x[10] + x[11] + x[12],
        h=hs116_inequality,
        vector=True,
        low=(0.1, 0.1, 0.1, 0.0001, 0.1, 0.1, 0.1, 0.1, 500, 0.1, 1, 0.0001, 0.0001),
        high=(1, 1, 1, 0.1, 0.9, 0.9, 1000, 1000, 1000, 500, 150, 150, 150),
        start=(0.5, 0.8, 0.9, 0.1, 0.14, 0.5, 489, 80, 650, 450, 150, 150, 150),
        optimum=97.5875095580705,
        solution=(
            *(0.8037731573767, 0.899985800673, 0.9709824354838, 0.1, 0.1908131762155),
            *(0.4606547828524, 574.0775735828, 74.07757358276, 500.016160169, 0.1),
            *(20.23309069737, 77.34768992731, 0.006728933395572),
        ),
        source=f"{BOOK} 116: a membrane separation of three stages",
        note="the book has f = 97.588409",
    ),
    "HS117": Definition(
        f=hs117_objective,
        h=hs117_inequality,
        vector=True,
        low=0,
        start=(*(0.001,) * 6, 60, *(0.001,) * 8),
        optimum=32.3486789657227,
        solution=(
            *(0, 0, 5.174040727698, 0, 3.061108687758),
            *(11.8395456648, 0, 0, 0.1038961907706, 0),
            *(0.3, 0.3334676065346, 0.4, 0.4283101047817, 0.2239648735608),
        ),
        source=f"{BOOK} 117: Colville's second problem",
    ),
    "HS118": Definition(
        f=hs118_objective,
        h=hs118_inequality,
        vector=True,
        low=(8, 43, 3, *(0,) * 12),
        high=(21, 57, 16, *(90, 120, 60) * 4),
        start=(20, 55, 15, *(20, 60, 20) * 4),
        optimum=664.82045,
        solution=(8, 49, 3, 1, 56, 0, 1, 63, 6, 3, 70, 12, 5, 77, 18),
        source=f"{BOOK} 118",
    ),
    "HS268": Definition(
        f=lambda x: ((x.new_tensor(D) @ x - x.new_tensor(d)) ** 2).sum(),
        h=lambda x: x.new_tensor(SIDES) @ x - x.new_tensor([5, -20, 40, -11, 30]),
        vector=True,
        start=(1, 1, 1, 1, 1),
        optimum=0,
        solution=(1, 2, -1, 3, -4),
        source="Schittkowski (1987), problem 268",
    ),
}
