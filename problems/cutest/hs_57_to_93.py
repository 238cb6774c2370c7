"""Problems 57 to 93 of Hock and Schittkowski that have inequalities, and one made of theirs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, cos, exp, sin, sqrt

from .definition import Definition
from .hock_schittkowski import BOOK

# HS57: months since the start and the share of free chlorine.
MONTHS = (
    *(8, 8, 10, 10, 10, 10, 12, 12, 12, 12, 14, 14, 14, 16, 16, 16, 18, 18, 20, 20, 20, 22),
    *(22, 22, 24, 24, 24, 26, 26, 26, 28, 28, 30, 30, 30, 32, 32, 34, 36, 36, 38, 38, 40, 42),
)
CHLORINE = (
    *(0.49, 0.49, 0.48, 0.47, 0.48, 0.47, 0.46, 0.46, 0.45, 0.43, 0.45, 0.43, 0.43, 0.44, 0.43),
    *(0.43, 0.46, 0.45, 0.42, 0.42, 0.43, 0.41, 0.41, 0.40, 0.42, 0.40, 0.40, 0.41, 0.40, 0.41),
    *(0.41, 0.40, 0.40, 0.40, 0.38, 0.41, 0.40, 0.40, 0.41, 0.38, 0.40, 0.40, 0.39, 0.39),
)

# HS86 and HS117: Colville's first and second problem, a cubic under linear inequalities and its dual.
LINEAR = (-15, -27, -36, -18, -12)
QUADRATIC = (
    (30, -20, -10, 32, -10),
    (-20, 39, -6, -31, 32),
    (-10, -6, 10, -6, -10),
    (32, -31, -6, 39, -20),
    (-10, 32, -10, -20, 30),
)
CUBIC = (4, 8, 10, 6, 2)
ROWS = (
    *((-16, 2, 0, 1, 0), (0, -2, 0, 4, 2), (-3.5, 0, 2, 0, 0), (0, -2, 0, -4, -1), (0, -9, -2, 1, -2.8), (2, 0, -4, 0, 0)),
    *((-1, -1, -1, -1, -1), (-1, -2, -3, -2, -1), (1, 2, 3, 4, 5), (1, 1, 1, 1, 1)),
)
RIGHT = (-40, -2, -0.25, -4, -4, -1, -40, -60, 5, 1)


def hs57_objective(x1: Tensor, x2: Tensor) -> Tensor:
    a, b = x1.new_tensor(MONTHS), x1.new_tensor(CHLORINE)
    return ((b - x1 - (0.49 - x1) * exp(-x2 * (a - 8))) ** 2).sum()


def hs76_objective(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor) -> Tensor:
    return x1**2 + 0.5 * x2**2 + x3**2 + 0.5 * x4**2 - x1 * x3 + x3 * x4 - x1 - 3 * x2 + x3 - x4


def hs76_inequality(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor) -> list[Tensor]:
    return [
        x1 + 2 * x2 + x3 + x4 - 5,
        3 * x1 + x2 + 2 * x3 - x4 - 4,
        1.5 - x2 - 4 * x3,
    ]


def hs83_inequality(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor, x5: Tensor) -> list[Tensor]:
    """0 <= q1 <= 92, 90 <= q2 <= 110, 20 <= q3 <= 25."""
    q1 = 85.334407 + 0.0056858 * x2 * x5 + 0.0006262 * x1 * x4 - 0.0022053 * x3 * x5
    q2 = 80.51249 + 0.0071317 * x2 * x5 + 0.0029955 * x1 * x2 + 0.0021813 * x3**2
    q3 = 9.300961 + 0.0047026 * x3 * x5 + 0.0012547 * x1 * x3 + 0.0019085 * x3 * x4
    return [-q1, 90 - q2, 20 - q3, q1 - 92, q2 - 110, q3 - 25]


def hs86_objective(x: Tensor) -> Tensor:
    return x.new_tensor(LINEAR) @ x + x @ x.new_tensor(QUADRATIC) @ x + x.new_tensor(CUBIC) @ x**3


def hs86_inequality(x: Tensor) -> Tensor:
    return x.new_tensor(RIGHT) - x.new_tensor(ROWS) @ x


def roots() -> list[float]:
    """The first 30 solutions of mu tan mu = 1: of mu = k pi + arctan(1/mu), a contraction for k > 0; by Newton for k = 0."""
    found = []
    for k in range(30):
        mu = k * math.pi + (0.86 if k == 0 else 1 / (k * math.pi))
        for _ in range(8):  # of g = mu sin mu - cos mu
            mu -= (mu * math.sin(mu) - math.cos(mu)) / (2 * math.sin(mu) + mu * math.cos(mu))
        found.append(mu)
    return found


ROOTS = roots()


def heat(x: Tensor) -> Tensor:
    """HS88 to HS92: the squared distance, over s in [0, 1], of a temperature and (1 - s^2)/2, less 1e-4.

    The temperature after heating of alternate sign between the times sum_j>=k x_j^2 is sum_i a_i rho_i cos(mu_i s), with
    a_i = 2 mu_i^2 sin mu_i / (mu_i + sin mu_i cos mu_i); the integrals of its square have formulas.
    """
    n, mu = len(x), x.new_tensor(ROOTS)
    a = 2 * mu**2 * sin(mu) / (mu + sin(mu) * cos(mu))
    times = (x**2).flip(0).cumsum(0).flip(0)  # sum over j >= k
    signs = x.new_tensor([1] + [2 * (-1) ** k for k in range(1, n)])
    rho = -((signs * exp(-(mu[:, None] ** 2) * times)).sum(1) + (-1) ** n) / mu**2
    w = a * rho
    # int cos(mu_i s) cos(mu_j s) ds and int (1 - s^2)/2 cos(mu_i s) ds
    gram = 0.5 * (torch.sinc((mu[:, None] - mu) / math.pi) + torch.sinc((mu[:, None] + mu) / math.pi))
    mixed = (sin(mu) - mu * cos(mu)) / mu**3
    return (w @ gram @ w - 2 * mixed @ w + 2 / 15 - 1e-4).reshape(1)


def heated(number: int, solution: tuple[float, ...]) -> Definition:
    n = number - 86
    return Definition(
        f=lambda x: (x**2).sum(),
        h=heat,
        vector=True,
        start=[0.5 * (-1) ** k for k in range(n)],
        optimum=1.36265681488990,
        solution=solution,
        unique=False,
        source=f"{BOOK} {number}: transient heat conduction, {n} switches",
    )


HS_57_TO_93 = {
    "HS57": Definition(
        f=hs57_objective,
        h=lambda x1, x2: [0.09 - 0.49 * x2 + x1 * x2],
        low=(0.4, -4),
        start=(0.42, 5),
        optimum=0.0284596697229867,
        solution=(0.4199526507578, 1.284845193625),
        source=f"{BOOK} 57: a fit of chlorine by time",
    ),
    "HS64": Definition(
        f=lambda x1, x2, x3: 5 * x1 + 50000 / x1 + 20 * x2 + 72000 / x2 + 10 * x3 + 144000 / x3,
        h=lambda x1, x2, x3: [4 / x1 + 32 / x2 + 120 / x3 - 1],
        low=1e-5,
        start=(1, 1, 1),
        optimum=6299.84242792152,
        solution=(108.7347049109, 85.12621279089, 204.3245966126),
        source=f"{BOOK} 64",
    ),
    "HS65": Definition(
        f=lambda x1, x2, x3: (x1 - x2) ** 2 + (x1 + x2 - 10) ** 2 / 9 + (x3 - 5) ** 2,
        h=lambda x1, x2, x3: [x1**2 + x2**2 + x3**2 - 48],
        low=(-4.5, -4.5, -5),
        high=(4.5, 4.5, 5),
        start=(-5, 5, 0),
        optimum=0.953528856804783,
        solution=(3.650461725213, 3.650461725213, 4.62041755532),
        source=f"{BOOK} 65",
    ),
    "HS66": Definition(
        f=lambda x1, x2, x3: 0.2 * x3 - 0.8 * x1,
        h=lambda x1, x2, x3: [exp(x1) - x2, exp(x2) - x3],
        low=0,
        high=(100, 100, 10),
        start=(0, 1.05, 2.9),
        optimum=0.518163274181541,
        solution=(0.1841264879228, 1.202167873197, 3.327322322599),
        source=f"{BOOK} 66",
    ),
    "HS71": Definition(
        f=lambda x1, x2, x3, x4: x1 * x4 * (x1 + x2 + x3) + x3,
        c=lambda x1, x2, x3, x4: [x1**2 + x2**2 + x3**2 + x4**2 - 40],
        h=lambda x1, x2, x3, x4: [25 - x1 * x2 * x3 * x4],
        low=1,
        high=5,
        start=(1, 5, 5, 1),
        optimum=17.0140172891563,
        solution=(1, 4.742999637264, 3.821149984185, 1.379408293173),
        source=f"{BOOK} 71",
    ),
    "HS72": Definition(
        f=lambda x1, x2, x3, x4: 1 + x1 + x2 + x3 + x4,
        h=lambda x1, x2, x3, x4: [
            4 / x1 + 2.25 / x2 + 1 / x3 + 0.25 / x4 - 0.0401,
            0.16 / x1 + 0.36 / x2 + 0.64 / x3 + 0.64 / x4 - 0.010085,
        ],
        low=0.001,
        high=(4e5, 3e5, 2e5, 1e5),
        start=(1, 1, 1, 1),
        optimum=727.679357789613,
        solution=(193.4074272719, 179.5470760323, 185.0180633582, 168.7067911272),
        source=f"{BOOK} 72: sizes of samples",
    ),
    "HS73": Definition(
        f=lambda x1, x2, x3, x4: 24.55 * x1 + 26.75 * x2 + 39 * x3 + 40.5 * x4,
        c=lambda x1, x2, x3, x4: [x1 + x2 + x3 + x4 - 1],
        h=lambda x1, x2, x3, x4: [
            5 - 2.3 * x1 - 5.6 * x2 - 11.1 * x3 - 1.3 * x4,
            21
            - 12 * x1
            - 11.9 * x2
            - 41.8 * x3
            - 52.1 * x4
            + 1.645 * sqrt(0.28 * x1**2 + 0.19 * x2**2 + 20.5 * x3**2 + 0.62 * x4**2),
        ],
        low=0,
        start=(1, 1, 1, 1),
        optimum=29.8943781591434,
        solution=(0.6355215686351, 0, 0.3127018807515, 0.05177655061341),
        source=f"{BOOK} 73: cattle feed",
    ),
    "HS76": Definition(
        f=hs76_objective,
        h=hs76_inequality,
        low=0,
        start=(0.5, 0.5, 0.5, 0.5),
        optimum=-103 / 22,
        solution=(3 / 11, 23 / 11, 0, 6 / 11),
        source=f"{BOOK} 76",
    ),
    "HS76I": Definition(
        f=hs76_objective,
        h=hs76_inequality,
        low=0,
        high=5,
        start=(0.5, 0.5, 0.5, 0.5),
        optimum=-103 / 22,
        solution=(3 / 11, 23 / 11, 0, 6 / 11),
        source=f"{BOOK} 76, with upper bounds that do not matter",
    ),
    "HS83": Definition(
        f=lambda x1, x2, x3, x4, x5: 5.3578547 * x3**2 + 0.8356891 * x1 * x5 + 37.293239 * x1 - 40792.141,
        h=hs83_inequality,
        low=(78, 33, 27, 27, 27),
        high=(102, 45, 45, 45, 45),
        start=(78, 33, 27, 27, 27),
        optimum=-30665.5386717833,
        solution=(78, 33, 29.99525602568, 45, 36.77581290579),
        source=f"{BOOK} 83: Colville's third problem",
    ),
    "HS86": Definition(
        f=hs86_objective,
        h=hs86_inequality,
        vector=True,
        low=0,
        start=(0, 0, 0, 0, 1),
        optimum=-32.3486789657227,
        solution=(0.3, 0.3334676065346, 0.4, 0.4283101047817, 0.2239648735608),
        source=f"{BOOK} 86: Colville's first problem",
    ),
    "HS88": heated(88, (1.074318731203, -0.4566137083747)),
    "HS89": heated(89, (1.074318731203, -0.4566137083747, 0)),
    "HS90": heated(90, (0.7087466355811, 0, 0.8073654332251, -0.4566137083747)),
    "HS91": heated(91, (0.8448936530374, 0, 0.6635626958105, 0.4566137083747, 0)),
    "HS92": heated(92, (0.4664726496763, 0, 0.6155776536112, 0, 0.7467450406214, -0.4566137083747)),
    "HS93": Definition(
        f=lambda x1, x2, x3, x4, x5, x6: (
            (0.0204 + 0.0607 * x5**2) * x1 * x4 * (x1 + x2 + x3) + (0.0187 + 0.0437 * x6**2) * x2 * x3 * (x1 + 1.57 * x2 + x4)
        ),
        h=lambda x1, x2, x3, x4, x5, x6: [
            2.07 - 0.001 * x1 * x2 * x3 * x4 * x5 * x6,
            0.00062 * x1 * x4 * x5**2 * (x1 + x2 + x3) + 0.00058 * x2 * x3 * x6**2 * (x1 + 1.57 * x2 + x4) - 1,
        ],
        low=0,
        start=(5.54, 4.4, 12.02, 11.82, 0.702, 0.852),
        optimum=135.075962829152,
        solution=(5.332666335529, 4.656744059172, 10.43299194047, 12.08230634006, 0.7526074362238, 0.8786508746591),
        source=f"{BOOK} 93: the design of a transformer",
    ),
}
