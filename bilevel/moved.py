"""Where the modules of 0.1.0 went: their names work for one release, with a warning, and so do pickles that hold them."""

from __future__ import annotations

from constrained.core.moved import forward

MODULES = {
    "bilevel.adjoint": "bilevel.hypergradients.adjoint",
    "bilevel.constrained_residuals": "bilevel.certificates.lower_kkt",
    "bilevel.coupled": "bilevel.lower.coupled_set",
    "bilevel.derivatives": "bilevel.certificates.derivatives",
    "bilevel.diagnose": "bilevel.advice.measure",
    "bilevel.diagnosis": "bilevel.advice.diagnosis",
    "bilevel.fixed_point": "bilevel.hypergradients.fixed_point",
    "bilevel.hypergradient": "bilevel.hypergradients.hypergradient",
    "bilevel.hyperobjective": "bilevel.reformulations.hyperobjective",
    "bilevel.joint": "bilevel.reformulations.joint_penalty",
    "bilevel.loops": "bilevel.single_loop",
    "bilevel.lower_gap": "bilevel.certificates.lower_gap",
    "bilevel.lower_value": "bilevel.lower.regularised_value",
    "bilevel.memory": "bilevel.advice.memory",
    "bilevel.neumann": "bilevel.hypergradients.stochastic_neumann",
    "bilevel.plots": "bilevel.advice.plots",
    "bilevel.recommend": "bilevel.advice.recommend",
    "bilevel.residuals": "bilevel.certificates.residuals",
    "bilevel.retrain": "bilevel.advice.retrain",
    "bilevel.surrogate": "bilevel.reformulations.nested_penalty",
    "bilevel.unrolled": "bilevel.hypergradients.unrolled",
    "bilevel.value": "bilevel.reformulations.differentiable_value",
}
NAMES = {  # of modules that were taken apart, and new names
    "bilevel.joint.JointDescent": "bilevel.reformulations.older_files",
    "bilevel.surrogate.Surrogate": "bilevel.reformulations.nested_penalty:NestedPenalty",
    "bilevel.adjoint.Here": "bilevel.hypergradients.adjoint:LevelsAt",
    "bilevel.adjoint.bent": "bilevel.hypergradients.adjoint:on_tangent",
    "bilevel.adjoint.lifted": "constrained.linear.neumann:least_norm",
    "bilevel.adjoint.system": "bilevel.hypergradients.adjoint:adjoint_system",
    "bilevel.derivatives.look": "bilevel.certificates.derivatives:check_start",
    "bilevel.joint.Penalised": "bilevel.reformulations.joint_penalty:JointPenalty",
    "bilevel.lower_value.Value": "bilevel.lower.regularised_value:RegularisedValue",
    "bilevel.surrogate.solve": "bilevel.reformulations.nested_penalty:inner_minimum",
    "bilevel.recommend.Recommendation": "constrained.core.choice",
    "bilevel.value.Value": "bilevel.reformulations.differentiable_value:DifferentiableValue",
    "bilevel.fixed_point.gmres": "constrained.linear.gmres",
    "bilevel.hypergradient.SUPPORTS": "bilevel.hypergradients.adjoint",
    "bilevel.lower_value.NAMES": "bilevel.lower.constraints",
    "bilevel.lower_value.Rows": "bilevel.lower.constraints:LowerConstraints",
    "bilevel.lower_value.Gap": "bilevel.reformulations.lagrangian_gap",
    "bilevel.lower_value.penalised_gap": "bilevel.reformulations.lagrangian_gap",
    "bilevel.neumann.largest": "constrained.linear.neumann",
    "bilevel.neumann.Scaled": "constrained.linear.neumann",
    "bilevel.neumann.Neumann": "constrained.linear.neumann",
}

forward(MODULES, NAMES)
