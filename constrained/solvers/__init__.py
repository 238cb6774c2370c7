"""Solvers of constrained problems."""
