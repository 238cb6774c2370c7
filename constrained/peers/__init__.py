"""What the solvers of other people have in common behind this library's interface.

reference         a run as one step, its verdict and notes; the problem on numpy arrays
stacked           the rows of c and h in one stack, and matrices as numbers at fixed places
ipopt_interface   the interface that Ipopt and its twins share
"""
