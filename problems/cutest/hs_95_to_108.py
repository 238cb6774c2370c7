"""Problems 95 to 108 of Hock and Schittkowski that have inequalities."""

from __future__ import annotations

import math

import torch
from torch import Tensor, exp, log

from .definition import Definition
from .hock_schittkowski import BOOK, hs100_objective

# HS105: weights, and how many people had each.
WEIGHTS = {
    **{95: 1, 105: 1, 110: 4, 115: 4, 120: 15, 125: 15, 130: 15, 135: 13, 140: 21, 145: 12, 150: 17, 155: 4, 160: 20, 165: 8},
    **{170: 17, 175: 8, 180: 6, 185: 6, 190: 7, 195: 4, 200: 3, 205: 3, 210: 8, 215: 1, 220: 6, 230: 5, 235: 1, 240: 7, 245: 1},
    250: 2,
}


def mixed(number: int, b: tuple[float, float, float, float], optimum: float, solution: tuple[float, ...]) -> Definition:
    """HS95 to HS98."""

    def inequality(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor, x5: Tensor, x6: Tensor) -> list[Tensor]:
        q1 = 17.1 * x1 + 38.2 * x2 + 204.2 * x3 + 212.3 * x4 + 623.4 * x5 + 1495.5 * x6
        q1 = q1 - 169 * x1 * x3 - 3580 * x3 * x5 - 3810 * x4 * x5 - 18500 * x4 * x6 - 24300 * x5 * x6
        q2 = 17.9 * x1 + 36.8 * x2 + 113.9 * x3 + 169.7 * x4 + 337.8 * x5 + 1385.2 * x6
        q2 = q2 - 139 * x1 * x3 - 2450 * x4 * x5 - 16600 * x4 * x6 - 17200 * x5 * x6
        q3 = -273 * x2 - 70 * x4 - 819 * x5 + 26000 * x4 * x5
        q4 = 159.9 * x1 - 311 * x2 + 587 * x4 + 391 * x5 + 2198 * x6 - 14000 * x1 * x6
        return [b[0] - q1, b[1] - q2, b[2] - q3, b[3] - q4]

    return Definition(
        f=lambda x1, x2, x3, x4, x5, x6: 4.3 * x1 + 31.8 * x2 + 63.3 * x3 + 15.8 * x4 + 68.5 * x5 + 4.7 * x6,
        h=inequality,
        low=0,
        high=(0.31, 0.046, 0.068, 0.042, 0.028, 0.0134),
        start=(0,) * 6,
        optimum=optimum,
        solution=solution,
        source=f"{BOOK} {number}",
    )


def geometric(number: int, a: float, optimum: float, solution: tuple[float, ...]) -> Definition:
    """HS101 to HS103: posynomials."""

    def objective(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor, x5: Tensor, x6: Tensor, x7: Tensor) -> Tensor:
        return (
            10 * x1 * x4**2 * x7**a / (x2 * x6**3)
            + 15 * x3 * x4 / (x1 * x2**2 * x5 * x7**0.5)
            + 20 * x2 * x6 / (x1**2 * x4 * x5**2)
            + 25 * x1**2 * x2**2 * x5**0.5 * x7 / (x3 * x6**2)
        )

    def inequality(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor, x5: Tensor, x6: Tensor, x7: Tensor) -> list[Tensor]:
        f = objective(x1, x2, x3, x4, x5, x6, x7)
        return [
            0.5 * x1**0.5 * x7 / (x3 * x6**2)
            + 0.7 * x1**3 * x2 * x6 * x7**0.5 / x3**2
            + 0.2 * x3 * x6 ** (2 / 3) * x7**0.25 / (x2 * x4**0.5)
            - 1,
            1.3 * x2 * x6 / (x1**0.5 * x3 * x5)
            + 0.8 * x3 * x6**2 / (x4 * x5)
            + 3.1 * x2**0.5 * x6 ** (1 / 3) / (x1 * x4**2 * x5)
            - 1,
            2 * x1 * x5 * x7 ** (1 / 3) / (x3**1.5 * x6)
            + 0.1 * x2 * x5 / (x3**0.5 * x6 * x7**0.5)
            + x2 * x3**0.5 * x5 / x1
            + 0.65 * x3 * x5 * x7 / (x2**2 * x6)
            - 1,
            0.2 * x2 * x5**0.5 * x7 ** (1 / 3) / (x1**2 * x4)
            + 0.3 * x1**0.5 * x2**2 * x3 * x4 ** (1 / 3) * x7**0.25 / x5 ** (2 / 3)
            + 0.4 * x3 * x5 * x7**0.75 / (x1**3 * x2**2)
            + 0.5 * x4 * x7**0.5 / x3**2
            - 1,
            100 - f,
            f - 3000,
        ]

    return Definition(
        f=objective,
        h=inequality,
        low=(0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01),
        high=10,
        start=(6,) * 7,
        optimum=optimum,
        solution=solution,
        source=f"{BOOK} {number}",
    )


def hs104_objective(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor, x5: Tensor, x6: Tensor, x7: Tensor, x8: Tensor) -> Tensor:
    return 0.4 * (x1 / x7) ** 0.67 + 0.4 * (x2 / x8) ** 0.67 + 10 - x1 - x2


def hs104_inequality(
    x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor, x5: Tensor, x6: Tensor, x7: Tensor, x8: Tensor
) -> list[Tensor]:
    f = hs104_objective(x1, x2, x3, x4, x5, x6, x7, x8)
    return [
        0.0588 * x5 * x7 + 0.1 * x1 - 1,
        0.0588 * x6 * x8 + 0.1 * x1 + 0.1 * x2 - 1,
        4 * x3 / x5 + 2 / (x3**0.71 * x5) + 0.0588 * x7 / x3**1.3 - 1,
        4 * x4 / x6 + 2 / (x4**0.71 * x6) + 0.0588 * x8 / x4**1.3 - 1,
        1 - f,
        f - 4.2,
    ]


def hs105_objective(x: Tensor) -> Tensor:
    """Minus the logarithm of the likelihood of a mixture of three normal distributions."""
    y, count = x.new_tensor(list(WEIGHTS)), x.new_tensor(list(WEIGHTS.values()))
    share, mean, deviation = torch.stack([x[0], x[1], 1 - x[0] - x[1]]), x[2:5], x[5:8]
    density = share / (math.sqrt(2 * math.pi) * deviation) * exp(-(((y[:, None] - mean) / deviation) ** 2) / 2)
    return -(count @ log(density.sum(1)))


def hs108_inequality(
    x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor, x5: Tensor, x6: Tensor, x7: Tensor, x8: Tensor, x9: Tensor
) -> list[Tensor]:
    return [
        x3**2 + x4**2 - 1,
        x9**2 - 1,
        x5**2 + x6**2 - 1,
        x1**2 + (x2 - x9) ** 2 - 1,
        (x1 - x5) ** 2 + (x2 - x6) ** 2 - 1,
        (x1 - x7) ** 2 + (x2 - x8) ** 2 - 1,
        (x3 - x5) ** 2 + (x4 - x6) ** 2 - 1,
        (x3 - x7) ** 2 + (x4 - x8) ** 2 - 1,
        x7**2 + (x8 - x9) ** 2 - 1,
        x2 * x3 - x1 * x4,
        -x3 * x9,
        x5 * x9,
        x6 * x7 - x5 * x8,
    ]


HS_95_TO_108 = {
    "HS95": mixed(95, (4.97, -1.88, -29.08, -78.02), 0.01561952524239, (0, 0, 0, 0, 0, 0.003323303243063)),
    "HS96": mixed(96, (4.97, -1.88, -69.08, -118.02), 0.01561952524239, (0, 0, 0, 0, 0, 0.003323303243063)),
    "HS97": mixed(97, (32.97, 25.12, -29.08, -78.02), 3.135809122807, (0.2685649122807, 0, 0, 0, 0.028, 0.0134)),
    "HS98": mixed(98, (32.97, 25.12, -124.08, -173.02), 3.135809122807, (0.2685649122807, 0, 0, 0, 0.028, 0.0134)),
    "HS100": Definition(
        f=hs100_objective,
        h=lambda x1, x2, x3, x4, x5, x6, x7: [
            2 * x1**2 + 3 * x2**4 + x3 + 4 * x4**2 + 5 * x5 - 127,
            7 * x1 + 3 * x2 + 10 * x3**2 + x4 - x5 - 282,
            23 * x1 + x2**2 + 6 * x6**2 - 8 * x7 - 196,
            4 * x1**2 + x2**2 - 3 * x1 * x2 + 2 * x3**2 + 5 * x6 - 11 * x7,
        ],
        start=(1, 2, 0, 4, 0, 1, 1),
        optimum=680.630057374402,
        solution=(
            *(2.33049937288, 1.951372372897, -0.4775413923889, 4.365726233656, -0.6244869705268),
            *(1.038131018608, 1.594226711612),
        ),
        source=f"{BOOK} 100",
    ),
    "HS101": geometric(
        101,
        -0.25,
        1809.76476557141,
        (
            *(2.856158555755, 0.6108230308035, 2.150812562164, 4.712873709241, 0.9994875408575),
            *(1.347507504828, 0.03165276650277),
        ),
    ),
    "HS102": geometric(
        102,
        0.125,
        911.880571430108,
        (*(3.89625319107, 0.8093587601054, 2.664385993775, 4.300912874794, 0.8535549352486), *(1.095287444576, 0.02731045965772)),
    ),
    "HS103": geometric(
        103,
        0.5,
        543.667958466281,
        (
            *(4.394104510526, 0.8544687387974, 2.843230313951, 3.399978667687, 0.7229261330073),
            *(0.8704063818045, 0.02463882632723),
        ),
    ),
    "HS104": Definition(
        f=hs104_objective,
        h=hs104_inequality,
        low=0.1,
        high=10,
        start=(6, 3, 0.4, 0.2, 6, 6, 1, 0.5),
        optimum=3.95116344010336,
        solution=(
            *(6.465114028369, 2.232708647985, 0.6673974912866, 0.5957564229004, 5.93267567791),
            *(5.527234564977, 1.013322008903, 0.4006682291257),
        ),
        source=f"{BOOK} 104: the design of a reactor",
    ),
    "HS105": Definition(
        f=hs105_objective,
        h=lambda x: x[:1] + x[1:2] - 1,
        vector=True,
        low=(0.001, 0.001, 100, 130, 170, 5, 5, 5),
        high=(0.499, 0.499, 180, 210, 240, 25, 25, 25),
        start=(0.1, 0.2, 100, 125, 175, 11.2, 13.2, 15.8),
        optimum=1136.30730357407,
        solution=(
            *(0.352763030489, 0.499, 130.2456142282, 163.0582181997, 222.7669429),
            *(11.87831635263, 19.53736808504, 16.41489360936),
        ),
        source=f"{BOOK} 105: a mixture of three normal distributions",
        note="the book has f = 1138.41624, above this minimum",
    ),
    "HS106": Definition(
        f=lambda x1, x2, x3, x4, x5, x6, x7, x8: x1 + x2 + x3,
        h=lambda x1, x2, x3, x4, x5, x6, x7, x8: [
            0.0025 * (x4 + x6) - 1,
            0.0025 * (x5 + x7 - x4) - 1,
            0.01 * (x8 - x5) - 1,
            833.33252 * x4 + 100 * x1 - x1 * x6 - 83333.333,
            1250 * x5 + x2 * x4 - x2 * x7 - 1250 * x4,
            1250000 + x3 * x5 - x3 * x8 - 2500 * x5,
        ],
        low=(100, 1000, 1000, 10, 10, 10, 10, 10),
        high=(10000, 10000, 10000, 1000, 1000, 1000, 1000, 1000),
        start=(5000, 5000, 5000, 200, 350, 150, 225, 425),
        optimum=7049.24802052866,
        solution=(
            *(579.3066844254, 1359.970668052, 5109.970668052, 182.0176995811, 295.6011732779),
            *(217.9823004189, 286.4165263032, 395.6011732779),
        ),
        source=f"{BOOK} 106: the design of a heat exchanger",
        note="the book has f = 7049.330923",
    ),
    "HS108": Definition(
        f=lambda x1, x2, x3, x4, x5, x6, x7, x8, x9: -0.5 * (x1 * x4 - x2 * x3 + x3 * x9 - x5 * x9 + x5 * x8 - x6 * x7),
        h=hs108_inequality,
        low=(None,) * 8 + (0,),
        start=(1,) * 9,
        optimum=-math.sqrt(3) / 2,
        solution=(
            *(0.8841292201371, 0.4672424660707, 0.03742076472445, 0.9992995979022, 0.8841292201371),
            *(0.4672424660707, 0.03742076472445, 0.9992995979022, 0),
        ),
        unique=False,
        source=f"{BOOK} 108: a hexagon of diameter 1",
    ),
}
