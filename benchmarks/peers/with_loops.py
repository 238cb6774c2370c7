"""BOAT and Betty: libraries that own the loop. One outer iteration of theirs is one hypergradient here.

Both run a number of steps of a torch optimizer on y, without a test of where it stands, then a number of CG or Neumann steps. SGD
with momentum 0.9 is what both take; their linear systems are those of their own code. x is set from outside, so that the outer
rule can be the same for all; y is kept from call to call, as both do by default.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .side import Answer, Call, Peer, Side
from .task import Task

STEPS = (10, 30, 100, 300, 1000, 3000)
RATE, MOMENTUM = 0.1, 0.9


class Variable(nn.Module):
    """A tensor as a module, which is what both libraries take."""

    def __init__(self, value: np.ndarray):
        super().__init__()
        self.value = nn.Parameter(torch.from_numpy(value.copy()))

    def forward(self) -> Tensor:
        return self.value

    def put(self, value: np.ndarray) -> None:
        self.value.data = torch.from_numpy(value.copy())


# -- BOAT ---------------------------------------------------------------------------------------------------------------------
def call_lower(feed: Any, upper: nn.Module, lower: nn.Module, function: Callable[..., Tensor], **kwargs: Any) -> Tensor:
    """BOAT names its losses by module and function; the task comes as a parameter."""
    return function(upper(), lower(**kwargs))


def boat() -> Peer:
    import boat_torch  # pyright: ignore[reportMissingImports]

    log = Path(tempfile.mkdtemp()) / "loss_log.json"

    def make(task: Task, steps: int, K: int, rate: float = RATE, momentum: float = MOMENTUM, inverse: str = "CG") -> Call:
        x, y = Variable(task.x), Variable(task.y)
        blank = {"alpha_init": 0.0, "alpha_decay": 0.9}
        config = {"fo_op": None, "gm_op": ["NGD"], "na_op": [inverse], "lower_iters": steps, "device": "cpu", "return_grad": True}
        config |= {"accumulate_grad": False, "copy_last_param": True, "loss_log_path": str(log), "GDA": blank}
        config |= {"RGT": {"truncate_iter": 0}, "CG": {"k": K, "tolerance": 1e-10}}
        config |= {"lower_level_model": y, "upper_level_model": x}
        config |= {"lower_level_var": list(y.parameters()), "upper_level_var": list(x.parameters())}
        config |= {"lower_level_opt": torch.optim.SGD(y.parameters(), lr=rate, momentum=momentum)}
        config |= {"upper_level_opt": torch.optim.SGD(x.parameters(), lr=1.0)}
        losses = {
            f"{level}_level_loss": {"function": f"{__name__}.call_lower", "params": {"function": function}}
            for level, function in (("lower", task.lower), ("upper", task.upper))
        }
        problem = boat_torch.Problem(config, losses)
        problem.build_ll_solver()
        problem.build_ul_solver()

        def call(at: np.ndarray, start: np.ndarray) -> Answer:
            x.put(at)
            y.put(start)
            x.value.grad = None
            (g,), _ = problem.run_iter({}, {}, current_iter=0)
            problem.loss_history.clear()  # it writes all of them at every iteration
            return Answer(float(task.upper(x.value, y.value)), g.detach().numpy().copy(), y.value.detach().numpy().copy())

        return call

    def ladder() -> Iterator[Side]:
        for steps in STEPS:
            K = min(steps, 300)
            yield Side(f"NGD {steps} steps, SGD({RATE}, {MOMENTUM}); CG k={K}", partial(make, steps=steps, K=K))

    documented = (
        Side("example's config: NGD 1 step, lr 0.01; RAD", partial(make, steps=1, K=10, rate=0.01, momentum=0.0, inverse="RAD")),
        Side("example's config: NGD 1 step, lr 0.01; CG k=10", partial(make, steps=1, K=10, rate=0.01, momentum=0.0)),
        Side("lower_iters' default: NGD 10 steps, lr 0.01; CG k=10", partial(make, steps=10, K=10, rate=0.01, momentum=0.0)),
    )
    usual = Side(f"NGD 10 steps, SGD({RATE}, {MOMENTUM}); CG k=10", partial(make, steps=10, K=10))
    return Peer("boat-torch", version("boat-torch"), ladder, documented, usual)


# -- Betty --------------------------------------------------------------------------------------------------------------------
def betty(released: bool = True) -> Peer:
    """released: 0.1.1 of PyPI, whose cg makes each direction from the residual before the last; GitHub has that mended."""
    from betty.configs import Config, EngineConfig  # pyright: ignore[reportMissingImports]
    from betty.engine import Engine  # pyright: ignore[reportMissingImports]
    from betty.problems import ImplicitProblem  # pyright: ignore[reportMissingImports]

    logging.disable(logging.INFO)  # its engine writes the graph of problems

    def make(task: Task, momentum: float = MOMENTUM, **options: Any) -> Call:
        x, y, found = Variable(task.x), Variable(task.y), []

        class Outer(ImplicitProblem):
            def training_step(self, batch: Any) -> Tensor:
                return task.upper(self.module(), self.inner())

            def custom_optimizer_step(self) -> None:
                found.append(x.value.grad.clone())  # pyright: ignore[reportOptionalMemberAccess]

        class Inner(ImplicitProblem):
            def training_step(self, batch: Any) -> Tensor:
                return task.lower(self.outer(), self.module())

        config, empty = Config(**options), [(torch.zeros(1),)]
        outer = Outer(
            "outer", Config(first_order=True, retain_graph=True), x, torch.optim.SGD(x.parameters(), lr=1.0), None, empty
        )
        inner = Inner("inner", config, y, torch.optim.SGD(y.parameters(), lr=RATE, momentum=momentum), None, empty)
        graph = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
        engine = Engine(config=EngineConfig(), problems=[outer, inner], dependencies=graph)
        engine.train()

        def call(at: np.ndarray, start: np.ndarray) -> Answer:
            x.put(at)
            y.put(start)
            inner.optimizer.state.clear()
            found.clear()
            for _ in range(config.unroll_steps):
                engine.train_step()
            (g,) = found
            return Answer(float(task.upper(x.value, y.value)), g.numpy(), y.value.detach().numpy().copy())

        return call

    def solving(steps: int) -> Side:
        if released:
            inverse = {"type": "neumann", "neumann_iterations": steps, "neumann_alpha": RATE}
            does = f"neumann {steps} times, alpha {RATE}"
        else:
            inverse = {"type": "cg", "cg_iterations": min(steps, 100)}
            does = f"cg {min(steps, 100)} times"
        return Side(f"{steps} steps, SGD({RATE}, {MOMENTUM}); {does}", partial(make, unroll_steps=steps, **inverse))

    def ladder() -> Iterator[Side]:
        yield from map(solving, STEPS)

    installed = {"type": "cg", "cg_iterations": 3, "cg_alpha": 0.1, "unroll_steps": 100}
    cg = {"type": "cg", "unroll_steps": 300, "cg_iterations": 100}
    documented = (
        Side("Config() as it comes: darts, 1 step; SGD(0.1)", partial(make, momentum=0.0)),
        Side("test_install.py: 100 steps, SGD(0.1); cg 3 times, alpha 0.1", partial(make, momentum=0.0, **installed)),
        Side(f"300 steps, SGD({RATE}, {MOMENTUM}); cg 100 times", partial(make, **cg)),
    )
    return Peer("betty-ml", version("betty-ml") if released else "GitHub", ladder, documented, solving(30))
