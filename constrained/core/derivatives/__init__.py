"""Derivatives of the user's functions, counted; nothing else differentiates but `core/live.py`.

counts               how often each function was called, and what for
function, matrix     functions that bring derivatives of their own, also as matrices
objective            gradients and Hessian products of functions of several variables
graph                evaluations with their graphs, and backwards of them
memory               what a run remembers of them
leaves               variables as trees that require gradients, and gradients by variable again
constraint           values, J v and J'w of constraints
tape, replay         f and c of one variable on one graph, and recorded as a program
lanes                f and c at many points at once
looks                derivatives that are not those of the values, or lost on the way
finite_differences   what derivatives are compared with
"""
