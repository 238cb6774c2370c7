"""Ours, hypertorch and TorchOpt: torch functions in, a lower solver beside them.

hypertorch and TorchOpt leave the lower solver to the user. Two are used: gradient descent or Adam for a fixed number of steps, as
their own examples do, and torch.optim.LBFGS with a tolerance, the best of torch's own (near the solution of the penalties it
stalls on round-off below 1e-7).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bilevel
from bilevel import BilevelProblem, Box, Everywhere
from problems.tuning.logistic import logistic_penalties

from .side import Answer, Call, Peer, Side
from .task import Task

RATE = 0.1  # of gradient descent, as in the examples of hypertorch and Betty; |g_yy| is 2 at x = 0 and 8 at x = 2
Lower = Callable[[Task, Tensor, Tensor], Tensor]  # task, x, y -> y


def problem(task: Task) -> BilevelProblem:
    X = Box(task.low, task.high) if np.isfinite(task.low) else Everywhere()
    return BilevelProblem(upper=task.upper, lower=task.lower, x=torch.from_numpy(task.x), y=torch.from_numpy(task.y), X=X)


# -- ours -------------------------------------------------------------------------------------------------------------------
def ours(own: bool = False) -> Peer:
    """own: the derivatives that `logistic_penalties(own=True)` has; for that task alone."""
    name = "bilevel, own" if own else "bilevel"

    def ladder() -> Iterator[Side]:
        for k in range(1, 11):
            yield Side(f"hypergradient(tol=1e-{k})", partial(_single, tol=10.0**-k, own=own))

    documented = (Side("hypergradient(), tol=1e-10", partial(_single, tol=1e-10, own=own)),)
    return Peer(name, bilevel.__version__, ladder, documented if own else (*documented, unsolved()))


def unsolved() -> Side:
    """What is said of a y that solves nothing: ten steps of gradient descent."""

    def make(task: Task) -> Call:
        whole = problem(task)

        def call(x: np.ndarray, y: np.ndarray) -> Answer:
            at, start = torch.from_numpy(x), torch.from_numpy(y)
            for _ in range(10):
                start = start - RATE * torch.func.grad(task.lower, argnums=1)(at, start)
            found = bilevel.hypergradient(whole, at, start)
            return Answer(np.nan, found.value.numpy(), y, found.status.name)

        return call

    return Side("hypergradient(y=...), y of 10 steps of GD", make)


def _single(task: Task, tol: float, own: bool) -> Call:
    whole = logistic_penalties(own=True).problem if own else problem(task)

    def call(x: np.ndarray, y: np.ndarray) -> Answer:
        found = bilevel.hypergradient(replace(whole, y=torch.from_numpy(y)), torch.from_numpy(x), tol=tol)
        return Answer(np.nan, found.value.numpy(), y, found.status.name)  # y and f are not part of the answer

    return call


def valued(tol: float | None) -> Side:
    """`problem.value(x).backward()`: y and v of the last call are kept."""

    def make(task: Task) -> Call:
        whole = problem(task)

        def call(x: np.ndarray, y: np.ndarray) -> Answer:
            at = torch.from_numpy(x.copy()).requires_grad_()
            phi = whole.value(at, tol=tol)
            phi.backward()
            return Answer(float(phi), at.grad.numpy(), y)  # pyright: ignore[reportOptionalMemberAccess]

        return call

    return Side("problem.value(x)" if tol is None else f"problem.value(x, tol={tol:g})", make)


# -- lower solvers ------------------------------------------------------------------------------------------------------------
def lbfgs(task: Task, x: Tensor, y: Tensor, tol: float) -> Tensor:
    y = y.detach().clone().requires_grad_()
    change = max(1e-3 * tol**2, 1e-15)  # of the loss; below it goes on without progress where round-off hides the tolerance
    options = {"max_iter": 500, "tolerance_grad": tol, "tolerance_change": change, "line_search_fn": "strong_wolfe"}
    method = torch.optim.LBFGS([y], **options)

    def closure() -> Tensor:
        method.zero_grad()
        with torch.enable_grad():
            loss = task.lower(x.detach(), y)
            loss.backward()
        return loss

    method.step(closure)
    return y.detach()


# -- hypertorch ---------------------------------------------------------------------------------------------------------------
def hypertorch(hg: ModuleType) -> Peer:
    from hypergrad.diff_optimizers import GradientDescent  # pyright: ignore[reportMissingImports]

    def steps(T: int) -> Lower:
        def solve(task: Task, x: Tensor, y: Tensor) -> Tensor:
            step, params = GradientDescent(lambda p, h: task.lower(h[0], p[0]), RATE), [y.detach().requires_grad_()]
            for _ in range(T):
                params = [p.detach().requires_grad_() for p in step(params, [x.detach()], create_graph=False)]
            return params[0]

        return solve

    def make(task: Task, lower: Lower, method: Callable[..., Any], K: int, tol: float = 1e-10) -> Call:
        step = GradientDescent(lambda p, h: task.lower(h[0], p[0]), RATE)

        def call(x: np.ndarray, y: np.ndarray) -> Answer:
            at = torch.from_numpy(x.copy()).requires_grad_()
            found = lower(task, at, torch.from_numpy(y))
            (g,) = method([found], [at], K, step, lambda p, h: task.upper(h[0], p[0]), tol=tol, set_grad=False)
            return Answer(float(task.upper(at, found)), g.numpy(), found.detach().numpy())

        return call

    def unrolled(task: Task, T: int, K: int) -> Call:
        step = GradientDescent(lambda p, h: task.lower(h[0], p[0]), RATE)

        def call(x: np.ndarray, y: np.ndarray) -> Answer:
            at, path = torch.from_numpy(x.copy()).requires_grad_(), [[torch.from_numpy(y.copy()).requires_grad_()]]
            for _ in range(T):
                path.append([p.detach().requires_grad_() for p in step(path[-1], [at.detach()], create_graph=False)])
            (g,) = hg.reverse(path[-K - 1 :], [at], [step] * K, lambda p, h: task.upper(h[0], p[0]), set_grad=False)
            return Answer(float(task.upper(at, path[-1][0])), g.detach().numpy(), path[-1][0].detach().numpy())

        return call

    def ladder() -> Iterator[Side]:
        for k in range(2, 11):
            made = partial(make, lower=partial(lbfgs, tol=10.0**-k), method=hg.CG, K=500, tol=RATE * 10.0**-k / 10)
            yield Side(f"torch LBFGS to 1e-{k}, CG to {RATE * 10.0**-k / 10:.0e}", made)

    documented = (
        Side("example: GD 100 steps, reverse K=10", partial(unrolled, T=100, K=10)),
        Side("example: GD 100 steps, CG K=10", partial(make, lower=steps(100), method=hg.CG, K=10)),
        Side("GD 100 steps, fixed_point K=10", partial(make, lower=steps(100), method=hg.fixed_point, K=10)),
        Side("GD 100 steps, CG_normaleq K=10", partial(make, lower=steps(100), method=hg.CG_normaleq, K=10)),
    )
    return Peer("hypertorch", "GitHub", ladder, documented, documented[1])


# -- TorchOpt -----------------------------------------------------------------------------------------------------------------
def torchopt() -> Peer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import functorch  # pyright: ignore[reportMissingImports]
        import torchopt as to  # pyright: ignore[reportMissingImports]

    def adam(task: Task, x: Tensor, y: Tensor, steps: int, lr: float) -> Tensor:
        y = y.detach().clone().requires_grad_()
        method = torch.optim.Adam([y], lr=lr)
        for _ in range(steps):
            method.zero_grad()
            with torch.enable_grad():
                task.lower(x.detach(), y).backward(inputs=[y])
            method.step()
        return y.detach()

    def make(task: Task, lower: Lower, solve: Any = None) -> Call:
        def optimality(y: Tensor, x: Tensor) -> Tensor:
            return functorch.grad(task.lower, argnums=1)(x, y)

        @to.diff.implicit.custom_root(optimality, argnums=1, solve=solve)
        def solution(y: Tensor, x: Tensor) -> Tensor:
            return lower(task, x, y)

        def call(x: np.ndarray, y: np.ndarray) -> Answer:
            at = torch.from_numpy(x.copy()).requires_grad_()
            found = solution(torch.from_numpy(y), at)
            phi = task.upper(at, found)
            (g,) = torch.autograd.grad(phi, at)
            return Answer(float(phi), g.numpy(), found.detach().numpy())

        return call

    def ladder() -> Iterator[Side]:
        for k in range(2, 11):
            rtol = 10.0 ** -(k - 1)
            solve = to.linear_solve.solve_cg(rtol=rtol)
            yield Side(
                f"torch LBFGS to 1e-{k}, solve_cg(rtol={rtol:.0e})",
                partial(make, lower=partial(lbfgs, tol=10.0**-k), solve=solve),
            )

    example = partial(adam, steps=100, lr=1e-3)
    documented = (
        Side("docstring's solve(): Adam lr 1e-3, 100 steps; default linear solver", partial(make, lower=example)),
        Side("torch LBFGS to 1e-7; default linear solver (rtol 1e-5)", partial(make, lower=partial(lbfgs, tol=1e-7))),
    )
    return Peer("torchopt", to.__version__, ladder, documented, documented[0])
