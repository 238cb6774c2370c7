"""What `minimize` takes and gives in scipy's shapes.

differences   Jacobians of numpy functions by differences within bounds
functions     fun, jac, hess, hessp of arrays or tensors, as a `Function`
constraints   bounds, and constraints of every form, as rows of c and h
kept          rows of constraints with keep_feasible=True
methods       names of methods and options, and what they are here; callbacks
result        a `Result` with scipy's names
"""
