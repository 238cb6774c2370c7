"""Status: how a solve stands. Feature: what a problem has, and so what a solver must support."""

from __future__ import annotations

import enum


class Feature(enum.Flag):
    """What a problem has, and so what a solver must support."""

    LOWER = enum.auto()
    SAMPLES = enum.auto()
    NO_HVP = enum.auto()
    X_SET = enum.auto()
    Y_SET = enum.auto()
    LOWER_EQUALITY = enum.auto()
    LOWER_INEQUALITY = enum.auto()
    UPPER_EQUALITY = enum.auto()
    UPPER_INEQUALITY = enum.auto()
    EQUALITY = enum.auto()
    INEQUALITY = enum.auto()
    MIXTURE = enum.auto()
    LIVE = enum.auto()

    def words(self) -> str:
        """The features as a message names them."""
        return ", ".join(WORDS[feature] for feature in self)


WORDS = {
    Feature.LOWER: "a lower level",
    Feature.SAMPLES: "mini-batches",
    Feature.NO_HVP: "functions without second derivatives",
    Feature.X_SET: "a set X",
    Feature.Y_SET: "a set Y",
    Feature.LOWER_EQUALITY: "lower_equality constraints",
    Feature.LOWER_INEQUALITY: "lower_inequality constraints",
    Feature.UPPER_EQUALITY: "upper_equality constraints",
    Feature.UPPER_INEQUALITY: "upper_inequality constraints",
    Feature.EQUALITY: "equality constraints",
    Feature.INEQUALITY: "inequality constraints",
    Feature.MIXTURE: "a Mixture as its lower level",
    Feature.LIVE: "a live module as its lower variable",
}
WELCOME = Feature.MIXTURE  # what no solver refuses: a function like any other to those that do not ask for its parts


class Status(enum.Enum):
    """How a solve stands; the value is its sentence.

    `done`: not RUNNING. `ok`: CONVERGED, and nothing else. `budget`: a limit that the caller set ended the run.
    """

    RUNNING = "Running."
    CONVERGED = "Converged: the residuals computed from the problem are within the tolerance."
    MAX_STEPS = "Stopped at the step limit."
    MAX_SECONDS = "Stopped at the time limit."
    STOPPED = "Stopped on request."
    STALLED = "Stalled: the solver ended, but the residuals computed from the problem are above the tolerance."
    PRECISION = "Round-off limits further progress."
    LINE_SEARCH = "The line search found no better point."
    LOCALLY_INFEASIBLE = "Ended at a point where the constraint violation cannot be reduced locally."
    UNBOUNDED = "The objective decreases without bound."
    DEGENERATE = "The constraints satisfy no qualification at the point reached."
    SINGULAR = "The lower Hessian is singular, and no hypergradient could be computed there."
    LOWER_UNSOLVED = "The lower level could not be solved."
    NONFINITE = "A function returned NaN or infinity; the point is the last finite one."
    DIVERGED = "The iterates grow without bound."

    @property
    def done(self) -> bool:
        return self is not Status.RUNNING

    @property
    def ok(self) -> bool:
        return self is Status.CONVERGED

    @property
    def budget(self) -> bool:
        return self in (Status.MAX_STEPS, Status.MAX_SECONDS, Status.STOPPED)
