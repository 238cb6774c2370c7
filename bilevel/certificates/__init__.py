"""Truth, computed from the problem and not from a solver.

derivatives   against finite differences, and those that are lost
residuals     of a point: both levels and the constraints
lower_kkt     where the lower level has constraints
lower_gap     against re-solves of the lower level
progress      since the start, in numbers that no unit changes
"""
