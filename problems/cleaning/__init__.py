"""Hyper-cleaning: wrong labels of digits found by learned weights.

problem     the bilevel problem and its study
data        digits with wrong labels
baselines   what other ways to find wrong labels reach
report      tables and pictures
"""

from .problem import CleaningStudy, hyper_cleaning

__all__ = ["CleaningStudy", "hyper_cleaning"]
