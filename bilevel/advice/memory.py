"""What a run of ScaleBiO will hold in memory, told before it starts, and what it held in the end."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from constrained.core.derivatives.objective import accumulated
from constrained.core.errors import OptionError, Unsuitable
from constrained.core.event import Event
from constrained.core.live import LiveVec
from constrained.core.optimizers import AdamW, step_
from constrained.core.status import Feature
from constrained.core.vec import Vec, tensors

from ..oracle import BilevelOracle
from ..problem import BilevelProblem
from ..solvers.scalebio import ScaleBiO

INTERVALS = 50  # of a block schedule that are looked at for the largest group of blocks
UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


@dataclass(frozen=True)
class MemoryReport:
    """Bytes on one device, of one process: `parameters` of both copies with what they share, `gradients` of one step, `optimizer`
    state of both, `activations` of a forward and backward beyond the gradients (measured). `total`: their sum, the peak.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        lines = {**dataclasses.asdict(self), "total": self.total}
        return "\n".join(f"{name:12}{words(value):>12}" for name, value in lines.items())


def memory(problem: BilevelProblem, solver: ScaleBiO) -> MemoryReport:
    """The memory that `solver` will need at its peak on `problem`; costs one forward and backward on a batch of each level.

    With all parameters P, those that move at a time A: parameters 2 P (what is frozen for good once), gradients A of a live
    variable, else 2 A; optimizer 2 x 2 A for AdamW, measured on a small tensor for any other. Of a variable that is not live both
    count twice, `solve` keeping the last state to fall back on, and the user's own values once more. Where a block schedule moves
    on, the state of the blocks before stays until the step's end, which is not in the report. Raises Unsuitable for other
    solvers and for problems without a mixture.

    >>> import bilevel
    >>> losses = lambda y: torch.stack([(y**2).sum(), ((y - 1) ** 2).sum()])
    >>> problem = BilevelProblem(
    ...     upper=lambda x, y: (y**2).sum(), lower=bilevel.Mixture(losses), x=torch.zeros(2), y=torch.zeros(1000))
    >>> report = memory(problem, ScaleBiO())
    >>> report.parameters, report.gradients, report.optimizer
    (20000, 8000, 32000)
    """
    if not isinstance(solver, ScaleBiO):
        raise Unsuitable(f"memory: solver: expected a ScaleBiO, got {type(solver).__name__}")
    if not isinstance(problem, BilevelProblem):
        raise OptionError(f"memory: problem: expected a BilevelProblem, got {type(problem).__name__}")
    if Feature.MIXTURE not in problem.features:
        raise Unsuitable(f"memory: problem: expected {Feature.MIXTURE.words()}, which ScaleBiO needs, got {problem.lower!r:.40}")
    oracle = problem.oracle()
    y = oracle.variables["y"]
    sizes = [_bytes([leaf]) for leaf in y.leaves]
    every = getattr(solver.blocks, "every", 1)
    groups = [solver.blocks.active(y.paths(), oracle.g.seed, n * every) for n in range(INTERVALS)]
    moving = max(groups, key=lambda flags: sum(itertools.compress(sizes, flags)))
    active = sum(itertools.compress(sizes, moving))
    live = isinstance(y, LiveVec)
    shared = _bytes([p for p in y.module.parameters() if not p.requires_grad]) if live else 0
    gradients = active if live else 2 * active
    scratch = max(itertools.compress(sizes, moving), default=0)
    activations = max(scratch, _activations(oracle, moving, gradients))
    parameters, optimizer = 2 * sum(sizes), 2 * round(active * _moments(solver))
    if live:
        return MemoryReport(parameters + shared, gradients, optimizer, activations)
    # The user's own values, the state, and the last one that `solve` keeps to fall back on.
    return MemoryReport(sum(sizes) + 2 * parameters, gradients, 2 * optimizer, activations)


class MemoryWatch:
    """A callback that compares a report with the peak of the run: `peak` bytes at the end, `ratio` to the report's total.

    On CUDA the allocator's peak; elsewhere the growth of the process's largest resident set since the watch was made, which also
    holds what the allocator and the libraries keep to themselves, and misses what fits into memory that was used before.

    >>> watch = MemoryWatch(MemoryReport(parameters=8, gradients=4, optimizer=16, activations=0))
    """

    def __init__(self, report: MemoryReport):
        self.report, self.peak = report, 0
        self._cuda = torch.cuda.is_available()
        self._before = 0 if self._cuda else _resident()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()

    def __call__(self, event: Event) -> None:
        self.peak = torch.cuda.max_memory_allocated() if self._cuda else _resident() - self._before

    @property
    def ratio(self) -> float:
        return self.peak / self.report.total

    def __str__(self) -> str:
        return f"{self.report}\n{'peak':12}{words(self.peak):>12}  {self.ratio:.2f} of the total"


def peak(work: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors that are alive at a time while it runs, beyond those alive before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events: Any = profile.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(0, *itertools.accumulate(changes)) if changes else 0


def words(count: int) -> str:
    """A number of bytes in the unit that suits it."""
    scale, unit = next((scale, unit) for scale, unit in UNITS if abs(count) >= scale or scale == 1)
    return f"{count} B" if scale == 1 else f"{count / scale:.2f} {unit}"


# -- parts ----------------------------------------------------------------------------------------------------------------------
def _activations(oracle: BilevelOracle, moving: list[bool], gradients: int) -> int:
    """The peak of what a step differentiates for w, both levels on one batch each, beyond the gradients."""
    x, y, sources = oracle.variables["x"], oracle.variables["y"], oracle.sources
    assert sources is not None
    p, zeta, xi = sources.weights(x).to(x.dtype), oracle.g.draw(0), oracle.f.draw(0)
    terms = [lambda trees: p @ sources.evaluate(trees[1:], zeta).to(x.dtype), lambda trees: oracle.f.evaluate(trees, xi)]
    both = [*(True for _ in x.leaves), *moving]
    return max(0, peak(lambda: accumulated(terms, (x, y), (0, 1), moving=both), y.device) - gradients)


def _moments(solver: ScaleBiO) -> float:
    """Bytes of optimizer state a byte of parameters."""
    if isinstance(solver.inner, AdamW):
        return 2.0
    one = Vec.of({"a": torch.zeros(1000)})
    state = step_(solver.inner, one, [torch.ones(1000)], solver.inner.init(one), 1e-3)
    return round(_bytes(tensors(state)) / 4000, 1)


def _bytes(found: list[torch.Tensor]) -> int:
    """Of the parts on this device."""
    local = [t.to_local() if hasattr(t, "to_local") else t for t in found]  # pyright: ignore
    return sum(t.numel() * t.element_size() for t in local)


def _resident() -> int:
    """The largest resident set of the process so far, bytes; 0 on Windows, which does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
