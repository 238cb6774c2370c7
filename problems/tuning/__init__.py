"""Hyperparameters with known best values.

ridge      one penalty, and fifty
logistic   penalties of a logistic regression on digits
sparse     the lasso and the elastic net
"""

from .ridge import ridge_1, ridge_50

__all__ = ["ridge_1", "ridge_50"]
