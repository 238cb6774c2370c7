"""Objectives of one level that stand for a bilevel problem, with gradients, for `constrained.descent`.

nested_penalty         psi_s(x) = (min over y of s f + g, minus min over z of g) / s
joint_penalty          f + gamma p in (x, y): the value gap, or the lower gradient's norm
lagrangian_gap         f + c (g - v) in (x, y, z), v the regularised Lagrangian's value
hyperobjective         Phi(x) = f(x, y(x)) by implicit differentiation
differentiable_value   Phi as a function that torch differentiates
"""
