"""The path of a continuation's stages, and the loop in which inner accuracies follow the residual."""

import math

import pytest
import torch

from bilevel.reformulations.accuracy import tightened
from bilevel.reformulations.extrapolation import Path
from constrained.core.vec import Vec


def at(c: float) -> Vec:
    """w(c), a parabola in 1/c in two variables at once, with limits 1 and -2."""
    one = torch.tensor([1 + 2 / c - 3 / c**2], dtype=torch.float64)
    return Vec.of((one, torch.tensor(-2 + 5 / c + 1 / c**2, dtype=torch.float64)))


def path(*penalties: float) -> Path:
    found = Path.at(at(penalties[0]))
    for c in penalties:
        found = found.then(at(c))
    return found


def close(found: Vec, wanted: Vec, tolerance: float) -> bool:
    return float((found - wanted).norm()) <= tolerance


@pytest.mark.parametrize("penalties", [(10, 100, 1000), (1, 10, 100, 1000)])
def test_parabolas_are_followed_exactly(penalties):
    limit = Vec.of((torch.tensor([1.0], dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)))
    assert close(path(*penalties).limit(), limit, 1e-12)
    assert close(path(*penalties).ahead(), at(10_000), 1e-12)


def test_one_stage_stays_and_two_give_the_line():
    assert close(path(10).limit(), at(10), 0.0)
    assert close(path(10).ahead(), at(10), 0.0)
    line = at(100) + (at(100) - at(10)) * (1 / 9)
    assert close(path(10, 100).limit(), line, 1e-12)
    assert close(path(10, 100).ahead_by_line(), at(100) + (at(100) - at(10)) * 0.1, 1e-12)


def test_inner_tolerances_fall_by_steps_until_they_fit():
    asked: list[float] = []

    def evaluate(tol: float) -> float:
        asked.append(tol)
        return 1e-6

    assert tightened(evaluate, lambda r: 0.1 * min(1.0, r), 1e-14) == 1e-6
    assert asked == pytest.approx([1e-1, 1e-3, 1e-5, 1e-7])


def test_a_failed_evaluation_ends_the_loop():
    asked: list[float] = []
    assert math.isnan(tightened(lambda tol: asked.append(tol) or math.nan, lambda r: 0.1, 1e-14))
    assert len(asked) == 1


def test_what_is_not_measured_is_evaluated_once_more():
    asked: list[float] = []
    assert tightened(lambda tol: asked.append(tol) or 1.0, lambda r: 0.1, 1e-14, unmeasured=lambda: len(asked) < 2) == 1.0
    assert asked == pytest.approx([1e-1, 1e-2])
