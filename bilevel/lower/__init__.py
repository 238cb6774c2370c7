"""The lower level at one x.

solution            its minimiser
constraints         its constraints with scaled rows, and their multipliers
regularised_value   the value of a constrained one, regularised in y and in the multipliers
coupled_set         the set of (x, y) that satisfy constraints which couple both
"""

from .solution import UNKNOWNS, Lower, solve_lower

__all__ = ["UNKNOWNS", "Lower", "solve_lower"]
