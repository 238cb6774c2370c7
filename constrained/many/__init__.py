"""Many runs of InteriorPoint side by side: every tensor has a leading axis of lanes, and a step is a few calls of each function.

The mathematics and the constants are those of `interior/` and `solvers/interior_point.py`, file by file; here they are written
for all lanes at once, in torch, on the device of the start.

lanes          lanes taken, put one below the other; products lane by lane
program        the scaled problem, its functions, distances to bounds
start          where it begins, cold or warm
iterate        where each lane stands, and every measure of it
newton         K factored with the right inertia, the step, multipliers of least squares
search         the filter line search, several lengths in one call
restoration    the violation minimised
method         a step of all lanes; who leaves, and why
verdict        residuals and shares at answers, from the problem
finish         lanes that InteriorPoint takes on
starts         what is given, as lanes; the function of them all
side_by_side   a run from its starts to its results
results        the sequence of results
solve_many     the door
"""
