"""The zoo: bilevel problems with sources, known solutions and recommended solvers."""
