"""Where the modules of 0.1.0 went: their names work for one release, with a warning, and so do pickles that hold them."""

from __future__ import annotations

from .core.moved import forward

MODULES = {
    "constrained.accuracy": "constrained.newton.accuracy",
    "constrained.augmented": "constrained.augmented_objective",
    "constrained.autolinear": "constrained.linear.auto",
    "constrained.core.autodiff": "constrained.core.derivatives.objective",
    "constrained.core.calls": "constrained.core.derivatives.counts",
    "constrained.core.constraint": "constrained.core.derivatives.constraint",
    "constrained.core.finite": "constrained.core.derivatives.finite_differences",
    "constrained.core.function": "constrained.core.derivatives.function",
    "constrained.core.loaders": "constrained.core.stream",
    "constrained.core.moments": "constrained.core.optimizers",
    "constrained.core.replay": "constrained.core.derivatives.replay",
    "constrained.core.sharded": "constrained.core.checkpoint_folder",
    "constrained.core.suitable": "constrained.core.choice",
    "constrained.core.tape": "constrained.core.derivatives.tape",
    "constrained.diagonal": "constrained.linear.diagonal",
    "constrained.direct": "constrained.linear.direct",
    "constrained.face": "constrained.descent.face_lbfgs",
    "constrained.intersections": "constrained.sets.intersections",
    "constrained.newton_cg": "constrained.descent.newton_cg",
    "constrained.pairs": "constrained.descent.curvature_pairs",
    "constrained.projected": "constrained.linear.projected_cg",
    "constrained.restoration": "constrained.newton.restoration",
    "constrained.sketch": "constrained.linear.sketch",
    "constrained.spectrum": "constrained.linear.spectrum",
    "constrained.tangent": "constrained.sets.tangent",
}
NAMES = {  # of modules that were taken apart, and new names
    "constrained.augmented.Augmented": "constrained.augmented_objective:AugmentedObjective",
    "constrained.projected.Constraint": "constrained.linear.projected_cg:Projector",
    "constrained.spectrum.norm": "constrained.linear.spectrum:operator_norm",
    "constrained.accuracy.Estimated": "constrained.newton.accuracy:EstimatedAccuracy",
    "constrained.accuracy.Paper": "constrained.newton.accuracy:PaperAccuracy",
    "constrained.autolinear.Machine": "constrained.linear.cost",
    "constrained.autolinear.MACHINES": "constrained.linear.cost",
    "constrained.autolinear.MULTIPLY": "constrained.linear.cost",
    "constrained.autolinear.Operations": "constrained.linear.cost",
    "constrained.core.function.Matrix": "constrained.core.derivatives.matrix",
    "constrained.core.function.is_sparse": "constrained.core.derivatives.matrix",
    "constrained.core.function.matrix": "constrained.core.derivatives.matrix",
}

forward(MODULES, NAMES)
