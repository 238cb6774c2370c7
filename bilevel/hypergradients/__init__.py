"""The gradient of Phi(x) = f(x, y(x)): v with g_yy v = f_y, and what takes its place.

adjoint              the linear system and its solution, on the tangent of Y
fixed_point          from a contraction y = T(x, y)
unrolled             through the steps of a descent
stochastic_neumann   from mini-batches
error_bounds         of Phi and its gradient where y and v are inexact, with the constants they need
hypergradient        one gradient, with its residuals and a status
"""
