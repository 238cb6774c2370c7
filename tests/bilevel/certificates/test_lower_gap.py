"""Which lower levels are told to be convex quadratics, and what the certificate then does without."""

import pytest
import torch

from bilevel import BilevelProblem, Point
from bilevel.certificates.lower_gap import DENSE, convex_quadratic
from constrained.core.vec import Vec
from problems.tuning.sparse import lasso

F64 = torch.float64
ONE = torch.ones(6, dtype=F64)
B = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=F64)  # B'B is singular
UP = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0, -1e-3], dtype=F64)


def problem(lower, y=ONE) -> BilevelProblem:
    return BilevelProblem(upper=lambda x, y: ((y - x) ** 2).sum(), lower=lower, x=torch.ones((), dtype=F64), y=y)


def told(problem: BilevelProblem) -> bool:
    oracle = problem.oracle()
    x, y = oracle.variables["x"], oracle.variables["y"]
    generator = torch.Generator().manual_seed(1)
    random = [y.map(lambda t: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)) for _ in range(3)]
    return convex_quadratic(oracle, x, [y, *random])


@pytest.mark.parametrize(
    ("lower", "expected"),
    [
        (lambda x, y: ((y - x) ** 2).sum(), True),
        (lambda x, y: ((B @ y - x) ** 2).sum(), True),
        (lambda x, y: ((B @ y - x) ** 2).sum() + x.exp() * (y**2).sum() + y.sum(), True),
        (lambda x, y: (y - x).sum(), False),  # without a curvature to compare rounding with
        (lambda x, y: (UP * y**2).sum() - x * y.sum(), False),
        (lambda x, y: ((y - x) ** 2).sum() + 1e-3 * y.sin().sum(), False),
        (lambda x, y: (y**4 - y**2).sum() + x * y.sum(), False),
        (lambda x, y: torch.nn.functional.huber_loss(y, x * ONE, reduction="sum"), False),
        (lambda x, y: torch.nn.functional.softplus(x * y).sum() + (y**2).sum(), False),
    ],
)
def test_what_is_a_convex_quadratic(lower, expected):
    assert told(problem(lower)) is expected


def test_single_precision_and_large_levels():
    assert told(BilevelProblem(
        upper=lambda x, y: ((y - x) ** 2).sum(),
        lower=lambda x, y: ((B.float() @ y - x) ** 2).sum(),
        x=torch.ones(()), y=torch.ones(6),
    ))  # fmt: skip
    assert not told(problem(lambda x, y: ((y - x) ** 2).sum(), torch.ones(DENSE + 1, dtype=F64)))


def test_the_certificate_of_a_convex_quadratic_solves_from_y_alone():
    """The lasso's hundreds of products a re-solve are spent once, and a y that is not solved is still found out."""
    instance = lasso()
    at = instance.problem.response(instance.problem.x)
    oracle = instance.problem.oracle()
    assert instance.problem.certify(Point(instance.problem.x, at))["lower_gap"] <= 1e-12
    off = at + 0.01
    fun = oracle.g.value((Vec.of(instance.problem.x), Vec.of(off))) - oracle.g.value((Vec.of(instance.problem.x), Vec.of(at)))
    assert instance.problem.certify(Point(instance.problem.x, off))["lower_gap"] == pytest.approx(float(fun), rel=1e-6)
