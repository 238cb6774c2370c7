"""Constrained optimization: the ground floor of `bilevel`."""
