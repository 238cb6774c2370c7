"""Solvers of bilevel problems, one file a method."""
