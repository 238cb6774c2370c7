"""Logistic regression with constraints: a convex objective on a plane, or where a plane meets the unit sphere.

    min   f(x) = 1/N sum_i log(1 + exp(-y_i a_i'x)) + ridge/2 |x|^2      rows a_i in R^n, labels y_i in {-1, 1}
    s.t.  A x = b                                                        A and b drawn from N(0, 1)
          |x|^2 = 1                                                      with `sphere`
    start x = 1, lam = 1, float64

I. Hong, S. Na, M. W. Mahoney and M. Kolar, Constrained Optimization via Exact Augmented Lagrangian and Randomized Iterative
Sketching, ICML 2023, arXiv 2305.18379, with seven sets of the LIBSVM collection, 10 rows in A and the sphere.

f is left to autodiff: products with its Hessian written by hand cost the same (1.0 and 0.8 ms at n = 112, N = 8124), and a dense
Hessian from them is 3 to 8 times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from constrained.core.arguments import expect
from constrained.core.errors import OptionError, extra
from constrained.core.problem import Multipliers, Point
from constrained.problem import ConstrainedProblem

from .arguments import number, placed, whole
from .instance import ConstrainedInstance
from .libsvm import read_libsvm

# The sets of the paper: features, rows.
SHAPES = {
    "a9a": (123, 32_561),
    "ionosphere_scale": (34, 351),
    "mushrooms": (112, 8_124),
    "phishing": (68, 11_055),
    "sonar_scale": (60, 208),
    "splice_scale": (60, 1_000),
    "w8a": (300, 49_749),
}
EXACT = 50.0  # softplus(z) is z beyond, to the last digit; torch's own limit of 20 has an error of 2e-9
DRAWS = 1_000  # of b, until the plane meets the sphere


def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    """569 rows with 30 features, each of mean 0 and deviation 1; benign is +1."""
    from sklearn.datasets import load_breast_cancer

    a, y = load_breast_cancer(return_X_y=True)
    return (a - a.mean(0)) / a.std(0), 2.0 * y - 1


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1797 images of 8 x 8 pixels in [0, 1]; odd digits are +1."""
    from sklearn.datasets import load_digits

    a, y = load_digits(return_X_y=True)
    return a / 16, 2.0 * (y % 2) - 1


SETS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {"breast-cancer": breast_cancer, "digits": digits}


def logistic(
    *,
    data: str = "sonar_scale",
    n: int | None = None,
    N: int | None = None,
    path: str | None = None,
    equalities: int = 10,
    sphere: bool = True,
    ridge: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> ConstrainedInstance:
    """Logistic regression subject to A x = b and |x|^2 = 1.

    data: 'breast-cancer' or 'digits' of scikit-learn; or a name of LIBSVM's (a9a, ionosphere_scale, mushrooms, phishing,
    sonar_scale, splice_scale, w8a) for drawn rows of that set's shape; or 'synthetic' with n features and N rows. path: a file
    in LIBSVM's format in place of `data`; n is then the number of features if the last ones are all zero.
    Drawn rows are N(0, 1), their labels follow the logistic model with coefficients N(0, 9/n). equalities: rows of A. sphere:
    with |x|^2 = 1; b is drawn until some x of the plane has that norm. seed: of A, b and drawn rows, which do not depend on one
    another.
    """
    expect("logistic(sphere=...)", sphere, bool)
    number("logistic(ridge=...)", ridge, 0)
    whole("logistic(seed=...)", seed, 0)
    whole("logistic(equalities=...)", equalities, 1)
    device = placed("logistic", dtype, device)
    a, y = _rows(data, n, N, path, seed)
    size, where = a.shape[1], f"drawn ({data})" if path is None and data not in SETS else path or data
    whole("logistic(equalities=...)", equalities, 1, size - 1 - sphere)
    plane, level = _plane(size, equalities, sphere, np.random.default_rng(np.random.SeedSequence([seed, 0])))
    D, A, b = (torch.from_numpy(array).to(device, dtype) for array in (-y[:, None] * a, plane, level))

    def objective(x: Tensor) -> Tensor:
        return softplus(D @ x, threshold=EXACT).mean() + ridge / 2 * (x @ x)

    def equality(x: Tensor) -> Tensor:
        return torch.cat([A @ x - b, (x @ x - 1).reshape(1)]) if sphere else A @ x - b

    x, lam = torch.ones(size, dtype=dtype, device=device), torch.ones(equalities + sphere, dtype=dtype, device=device)
    return ConstrainedInstance(
        name="logistic",
        problem=ConstrainedProblem(objective=objective, equality=equality, x=x),
        source=f"Hong et al. (2023), arXiv 2305.18379; {len(a)} rows with {size} features, {where}",
        start=Point(x, multipliers=Multipliers(equality=lam)),
    )


def _rows(data: Any, n: Any, N: Any, path: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """a and y."""
    if path is not None:
        if not isinstance(path, str):
            raise OptionError(f"logistic(path=...): expected the name of a file, got {path!r}")
        if n is not None:
            whole("logistic(n=...)", n, 1)
        _not_given("N", N, "path")
        return read_libsvm(path, n)
    if data != "synthetic":
        for name, value in (("n", n), ("N", N)):
            _not_given(name, value, f"data={data!r}")
    if isinstance(data, str) and data in SETS:
        extra("sklearn", "zoo")
        return SETS[data]()
    if data == "synthetic":
        whole("logistic(n=...)", n, 2)
        whole("logistic(N=...)", N, 1)
    elif isinstance(data, str) and data in SHAPES:
        n, N = SHAPES[data]
    else:
        names = ", ".join(("synthetic", *SETS, *SHAPES))
        raise OptionError(f"logistic(data=...): expected one of {names}, got {data!r}")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    w = 3 * rng.standard_normal(n) / np.sqrt(n)
    a = rng.standard_normal((N, n))
    return a, np.where(rng.random(N) < 1 / (1 + np.exp(-a @ w)), 1.0, -1.0)


def _not_given(name: str, value: Any, other: str) -> None:
    if value is not None:
        raise OptionError(f"logistic({name}=...): expected none with {other}, got {value!r}")


def _plane(n: int, m: int, sphere: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A and b; with `sphere` such that the least-norm x with A x = b has |x| < 1."""
    A = rng.standard_normal((m, n))
    for _ in range(DRAWS):
        b = rng.standard_normal(m)
        if not sphere or np.linalg.norm(np.linalg.lstsq(A, b)[0]) < 1:
            return A, b
    raise OptionError(f"logistic(equalities=...): {m} drawn planes in {n} dimensions miss the unit sphere; take fewer")
