"""Lower levels with a known hypergradient: quadratics of any spectrum in closed form, others by finite differences.

Of the others the hyper-objective is solved again at each x:

    g(x, y) = 1/2 (y - M x)'H (y - M x) + p mean softplus(-s A y) + e/2 sum exp(x) y^2
    f(x, y) = mean softplus(-t B y) + |x - 1|^2 / 20 + x'y / 10

by Newton's method, on a set by an accelerated projected gradient, to the last bits.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn.functional import softplus

from bilevel import Affine, Ball, BilevelProblem, Box, Everywhere, Halfspace, Product, Simplex, hypergradient

F64 = torch.float64
NX, NY = 4, 9  # of the quadratics
N = 5  # of the others


@dataclass
class Lower:
    """One problem. name of the set; p, e: the weights of the logistic loss and of the ridge exp(x)."""

    seed: int
    where: str = "everywhere"
    p: float = 0.0
    e: float = 0.0

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        draw = lambda *shape: torch.tensor(rng.normal(size=shape))  # noqa: E731
        root = draw(N, N)
        self.H = root @ root.T / N + 0.5 * torch.eye(N, dtype=F64)
        self.M, self.A, self.B, self.x = draw(N, N), draw(30, N), draw(20, N), 0.5 * draw(N)
        self.s, self.t = draw(30).sign(), draw(20).sign()
        self.rows, self.normal = draw(2, N), draw(N)

    # -- f and g ------------------------------------------------------------------------------------------------------------
    def upper(self, x, y):
        y = y if isinstance(y, torch.Tensor) else torch.cat([y["a"], y["b"]])
        return softplus(-self.t * (self.B @ y)).mean() + 0.05 * ((x - 1) ** 2).sum() + 0.1 * (x * y).sum()

    def lower(self, x, y):
        y = y if isinstance(y, torch.Tensor) else torch.cat([y["a"], y["b"]])
        r = y - self.M @ x
        return 0.5 * r @ self.H @ r + self.p * softplus(-self.s * (self.A @ y)).mean() + 0.5 * self.e * (x.exp() * y**2).sum()

    def slope(self, x, y):
        """g_y, written out."""
        logistic = -self.A.T @ (self.s * torch.sigmoid(-self.s * (self.A @ y))) / 30
        return self.H @ (y - self.M @ x) + self.p * logistic + self.e * x.exp() * y

    def curvature(self, x, y):
        """g_yy, written out."""
        q = torch.sigmoid(self.A @ y)
        return self.H + self.p * (self.A.T * (q * (1 - q))) @ self.A / 30 + self.e * torch.diag(x.exp())

    # -- Y, and projections that autograd differentiates --------------------------------------------------------------------
    @cached_property
    def set(self):
        return {
            "everywhere": Everywhere(),
            "box": Box(-0.2, 0.3),
            "simplex": Simplex(),
            "ball": Ball(0.5),
            "affine": Affine(self.rows.numpy(), [1.0, -1.0]),
            "halfspace": Halfspace(self.normal.numpy(), -2.0),
            "product": Product({"a": Simplex(), "b": Ball(0.3)}),
        }[self.where]

    def project(self, y):
        def simplex(w):
            falling = w.sort(descending=True).values
            excess = (falling.cumsum(0) - 1) / torch.arange(1, len(w) + 1)
            return (w - excess[(falling > excess).sum() - 1]).clamp(min=0)

        def ball(w, radius):
            return w * (radius / w.norm()).clamp(max=1.0)

        if self.where == "affine":
            return y - self.rows.T @ torch.linalg.solve(self.rows @ self.rows.T, self.rows @ y - y.new_tensor([1.0, -1.0]))
        return {
            "everywhere": lambda: y,
            "box": lambda: y.clamp(-0.2, 0.3),
            "simplex": lambda: simplex(y),
            "ball": lambda: ball(y, 0.5),
            "halfspace": lambda: y - self.normal * ((self.normal @ y + 2).clamp(min=0) / (self.normal @ self.normal)),
            "product": lambda: torch.cat([simplex(y[:3]), ball(y[3:], 0.3)]),
        }[self.where]()

    def map(self, x, y):
        """y = T(x, y): P_Y(y - g_y / L); on the whole space a sweep of Gauss and Seidel, whose T_y is not symmetric."""
        flat = y if isinstance(y, torch.Tensor) else torch.cat([y["a"], y["b"]])
        if self.where == "everywhere":
            return flat - torch.linalg.solve_triangular(self.step.tril(), self.slope(x, flat)[:, None], upper=False)[:, 0]
        new = self.project(flat - self.slope(x, flat) / torch.linalg.matrix_norm(self.step, 2))
        return {"a": new[:3], "b": new[3:]} if isinstance(y, dict) else new

    @cached_property
    def step(self):
        return self.curvature(self.x, torch.zeros(N, dtype=F64))

    @cached_property
    def problem(self):
        y = torch.zeros(N, dtype=F64)
        start = {"a": y[:3], "b": y[3:]} if self.where == "product" else y
        return BilevelProblem(upper=self.upper, lower=self.lower, x=torch.zeros(N, dtype=F64), y=start, Y=self.set)

    # -- truth --------------------------------------------------------------------------------------------------------------
    def solution(self, x):
        y = last = self.project(torch.zeros(N, dtype=F64))
        if self.where == "everywhere":
            for _ in range(30):
                y = y - torch.linalg.solve(self.curvature(x, y), self.slope(x, y))
            return y
        curvatures = torch.linalg.eigvalsh(self.curvature(x, y))
        L, mu = float(curvatures[-1]), float(curvatures[0]) / 2
        momentum = (L**0.5 - mu**0.5) / (L**0.5 + mu**0.5)
        for _ in range(400):
            ahead = y + momentum * (y - last)
            y, last = self.project(ahead - self.slope(x, ahead) / L), y
        return y

    @cached_property
    def truth(self):
        """Central differences of order four."""
        h, out = 1e-3, []
        phi = lambda x: float(self.upper(x, self.solution(x)))  # noqa: E731
        for e in torch.eye(N, dtype=F64):
            far, near = [phi(self.x + k * h * e) - phi(self.x - k * h * e) for k in (2, 1)]
            out.append((8 * near - far) / (12 * h))
        return np.array(out)

    @property
    def binds(self):
        """The free minimiser lies outside of Y."""
        y = self.solution(self.x)
        return float(self.slope(self.x, y).norm()) > 1e-2


PROBLEMS = {
    "quadratic": Lower(1),
    "logistic": Lower(2, p=2.0),
    "exp ridge": Lower(3, e=1.0),
    "logistic, exp ridge": Lower(4, p=4.0, e=1.0),
    "box": Lower(5, "box", p=2.0, e=1.0),
    "simplex": Lower(6, "simplex"),
    "ball": Lower(7, "ball", p=2.0, e=1.0),
    "affine": Lower(8, "affine", p=2.0),
    "halfspace": Lower(9, "halfspace", e=1.0),
    "product": Lower(10, "product", p=2.0),
    "simplex, logistic": Lower(12, "simplex", p=3.0),
    "ball, quadratic": Lower(13, "ball"),
}


# -- quadratics ------------------------------------------------------------------------------------------------------------
def spectrum(values, seed=0):
    """A symmetric matrix with these eigenvalues, in numpy."""
    Q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return Q @ np.diag(values) @ Q.T, Q


class Quadratic:
    """f = (y - a)' W (y - a) / 2 + |x - b|^2 / 10 + x' C y, g = (y - M x - m)' H (y - M x - m) / 2."""

    def __init__(self, eigenvalues, seed=0, inside=False, scale=1.0):
        rng = np.random.default_rng(seed + 100)
        self.H, Q = spectrum(eigenvalues, seed)
        self.M, self.m, self.a, self.b = rng.normal(size=(NY, NX)), rng.normal(size=NY), rng.normal(size=NY), rng.normal(size=NX)
        self.W, self.C = spectrum(rng.uniform(0.5, 2, NY), seed + 1)[0], 0.1 * rng.normal(size=(NX, NY))
        if inside:  # f ignores the null space of H
            P = Q[:, np.asarray(eigenvalues) != 0] @ Q[:, np.asarray(eigenvalues) != 0].T
            self.W, self.C = P @ self.W @ P, self.C @ P
        self.x, self.scale = rng.normal(size=NX), scale
        self.y = self.M @ self.x + self.m
        H, M, m, a, b, W, C = (torch.tensor(v) for v in (self.H, self.M, self.m, self.a, self.b, self.W, self.C))

        def upper(x, y):
            return scale * (0.5 * (y - a) @ W @ (y - a) + 0.1 * ((x - b) ** 2).sum() + x @ C @ y)

        def lower(x, y):
            r = y - M @ x - m
            return 0.5 * r @ H @ r

        self.problem = BilevelProblem(upper=upper, lower=lower, x=torch.zeros(NX, dtype=F64), y=torch.zeros(NY, dtype=F64))

    def f_y(self):
        return self.scale * (self.W @ (self.y - self.a) + self.C.T @ self.x)

    def truth(self):
        """d/dx f(x, M x + m): y follows x through the range of H alone, and f ignores the rest."""
        return self.scale * (0.2 * (self.x - self.b) + self.C @ self.y) + self.M.T @ self.f_y()

    def at(self, given=True, **options):
        y = torch.tensor(self.y) if given else None
        return hypergradient(self.problem, torch.tensor(self.x), y, **options)


SPECTRA = {
    "spread": np.logspace(0, -1, NY),
    "ill-conditioned": np.logspace(0, -4, NY),
    "identity": np.ones(NY),
    "1e-3 I": np.full(NY, 1e-3),
    "1e3 I": np.full(NY, 1e3),
    "two clusters": np.array([1.0] * 4 + [100.0] * 5),
    "two loose clusters": np.array([1.0] * 4 + [100.0] * 5) * (1 + 1e-10 * np.arange(NY)),
    "two far clusters": np.array([1e-3] * 4 + [1.0] * 5),
    "one outlier": np.array([1.0] * 8 + [1e4]),
}
