"""The parts of a Newton step on the KKT conditions, in the order of the step.

iterate       (x, lam) with f, grad_x L and c there
shifts        which K: the Hessian's shift and what rows of J that depend on one another need
kkt_system    K as an operator and as a matrix
accuracy      how well K z = b is solved
merit         the merit function, its slope along z, the step lengths
restoration   the violation minimised, where Newton's step fails
"""
