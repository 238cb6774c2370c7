"""The parts of a step of InteriorPoint, in the order of the step; in numpy, of dense or scipy.sparse matrices.

program        min f(x), c(x) = 0, h(x) + s = 0, s >= 0, low <= x <= high, scaled, and its functions at a point
start          where it begins, cold or warm
iterate        (x, s, lam, z): errors, barrier terms, residuals of the unscaled problem
inertia        K factored, its Hessian shifted until a step is one of descent
newton         the step for a barrier parameter, from the factors of K
filter         which trial points are progress, and the line search
restoration    the violation minimised, where the line search finds none
quadratic      a convex quadratic between bounds by the same factors: the inner step of AugmentedLagrangian
"""
