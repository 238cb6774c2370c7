"""What the words of the command line mean: names to objects, texts to values. Nothing here is evaluated."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from bilevel.blocks import LISA, AllBlocks, Cyclic
from bilevel.neumann import Neumann, StochasticNeumann
from bilevel.solvers.bo_rep import BORep
from bilevel.solvers.f2sa import F2SA
from bilevel.solvers.implicit import Implicit
from bilevel.solvers.kwon import KwonDoubleLoop, KwonSingleLoop
from bilevel.solvers.lv_hba import LVHBA
from bilevel.solvers.lv_hba_single import LVHBASingleLoop
from bilevel.solvers.maid import MAID
from bilevel.solvers.pbgd import GPBGD, VPBGD
from bilevel.solvers.pbgd_fixed import GPBGDFixedStep, VPBGDFixedStep
from bilevel.solvers.penalty import Penalty
from bilevel.solvers.penalty_sgd import PenaltySGD
from bilevel.solvers.scalebio import ScaleBiO
from bilevel.solvers.soba import SOBA
from bilevel.solvers.stocbio import StocBiO
from bilevel.unrolled import Unrolled
from constrained.accuracy import Estimated, Paper
from constrained.autolinear import AutoLinear
from constrained.core.errors import OptionError
from constrained.core.moments import SGD, AdamW, ScalarAdam
from constrained.core.options import Cosine, Power
from constrained.core.run import default_solver
from constrained.core.solver import Feature, Solver
from constrained.descent import LBFGS, SPG, ProjectedLBFGS
from constrained.direct import Direct
from constrained.face import FaceLBFGS
from constrained.linear import CG, Minres
from constrained.newton_cg import NewtonCG
from constrained.projected import ProjectedCG
from constrained.sketch import Gaussian, Kaczmarz, Sketch
from constrained.solvers.augmented_lagrangian import AugmentedLagrangian
from constrained.solvers.augmented_lagrangian_sgd import AugmentedLagrangianSGD
from constrained.solvers.reference import SLSQP, TrustConstr
from constrained.solvers.sketched_newton import SketchedNewton

from .instance import Instance, Recommended
from .text_sources import SNLI, Chains, Glosses, Reviews, Sentiment140

SOLVERS: dict[str, type[Solver]] = {
    "augmented-lagrangian": AugmentedLagrangian,
    "augmented-lagrangian-sgd": AugmentedLagrangianSGD,
    "bo-rep": BORep,
    "f2sa": F2SA,
    "gpbgd": GPBGD,
    "gpbgd-fixed-step": GPBGDFixedStep,
    "implicit": Implicit,
    "kwon-double-loop": KwonDoubleLoop,
    "kwon-single-loop": KwonSingleLoop,
    "lv-hba": LVHBA,
    "lv-hba-single-loop": LVHBASingleLoop,
    "maid": MAID,
    "penalty": Penalty,
    "penalty-sgd": PenaltySGD,
    "scalebio": ScaleBiO,
    "sketched-newton": SketchedNewton,
    "slsqp": SLSQP,
    "soba": SOBA,
    "stocbio": StocBiO,
    "trust-constr": TrustConstr,
    "vpbgd": VPBGD,
    "vpbgd-fixed-step": VPBGDFixedStep,
}
OBJECTS: dict[str, Callable[..., Any]] = {
    "adamw": AdamW,
    "all-blocks": AllBlocks,
    "auto-linear": AutoLinear,
    "cg": CG,
    "chains": Chains,
    "cosine": Cosine,
    "cyclic": Cyclic,
    "direct": Direct,
    "estimated": Estimated,
    "face-lbfgs": FaceLBFGS,
    "gaussian": Gaussian,
    "glosses": Glosses,
    "kaczmarz": Kaczmarz,
    "lbfgs": LBFGS,
    "lisa": LISA,
    "minres": Minres,
    "neumann": Neumann,
    "newton-cg": NewtonCG,
    "paper": Paper,
    "power": Power,
    "projected-cg": ProjectedCG,
    "projected-lbfgs": ProjectedLBFGS,
    "reviews": Reviews,
    "scalar-adam": ScalarAdam,
    "sentiment140": Sentiment140,
    "sgd": SGD,
    "sketch": Sketch,
    "snli": SNLI,
    "spg": SPG,
    "stochastic-neumann": StochasticNeumann,
    "unrolled": Unrolled,
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def value(text: str) -> Any:
    """A Python literal, an object of the library by its kebab-case name (`scalar-adam(lr=0.5)`), else the text itself."""
    named = re.fullmatch(r"([a-z][a-z0-9-]*)(?:\((.*)\))?", text.strip())
    if named and named[1] in OBJECTS:
        return _call(named[1], named[2] or "", text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all of these come from literal_eval
        return text


def _call(name: str, arguments: str, text: str) -> Any:
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        if not isinstance(call, ast.Call) or any(k.arg is None for k in call.keywords):
            raise TypeError("not a plain call")
        args = [ast.literal_eval(a) for a in call.args]
        kwargs = {str(k.arg): value(ast.unparse(k.value)) for k in call.keywords}
        return OBJECTS[name](*args, **kwargs)
    except OptionError:  # of the object itself, or of one inside it: says more than the sentence below
        raise
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as cause:
        raise OptionError(f"{text!r}: expected NAME or NAME(option=value, ...), with literal values") from cause


def pairs(words: list[str], flag: str) -> dict[str, Any]:
    """['a=1', 'b=x'] as a dict. Raises OptionError for a word without '='."""
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise OptionError(f"{flag} {word}: expected name=value")
        found[name.replace("-", "_")] = value(text)
    return found


def make(factory: Callable[..., Instance], name: str, arguments: dict[str, Any]) -> Instance:
    """The instance with the given arguments. Raises OptionError for one that the factory does not take."""
    known = list(inspect.signature(factory).parameters)
    for argument in arguments:
        if argument not in known:
            raise OptionError(f"--with {argument}: {name} has no such argument; it has {', '.join(known)}")
    return factory(**arguments)


def choose(instance: Instance, name: str | None, options: dict[str, Any]) -> Recommended:
    """The solver asked for with the instance's recommended options, then the caller's; without a name the first recommended."""
    if name is None:
        found = next(iter(instance.recommended.values()), None) or Recommended(default_solver(instance.problem))
    else:
        if name not in SOLVERS:
            raise OptionError(f"--solver {name}: expected one of {', '.join(SOLVERS)}")
        found = instance.recommended.get(SOLVERS[name]) or Recommended(SOLVERS[name]())
    try:
        solver: Solver = replace(found.solver, **options) if options else found.solver  # pyright: ignore[reportArgumentType]
    except TypeError:  # dataclasses.replace names an unknown option in its own words
        solver = type(found.solver)(**options)
    return replace(found, solver=solver)


def deterministic(instance: Instance, solver: Solver) -> Instance:
    """The instance with all data as one batch, where the solver does not take mini-batches."""
    if Feature.SAMPLES in solver.lacks(instance.features):
        return replace(instance, problem=instance.problem.full_batch())  # pyright: ignore[reportAttributeAccessIssue]
    return instance
