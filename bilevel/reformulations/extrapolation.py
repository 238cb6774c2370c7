"""The path of a stage's minimisers as the penalty grows, and its end.

A stage at penalty c ends at w(c) = w + a / c + b / c^2 + ...; penalties grow by GROWTH. Polynomials in 1/c through the last
stages (Neville) give w, the point of no penalty's bias, and w at the next penalty, where the next stage starts.
"""

from __future__ import annotations

from constrained.core.states import solver_state
from constrained.core.vec import Vec

GROWTH = 10.0  # of the penalty from stage to stage


@solver_state("Path")
class Path:
    """What the ends of the last three stages say; `stages` of them were seen in all."""

    stages: int
    end: Vec  # of the last stage
    line: Vec  # the limit of the line in 1/c through the last two ends
    bend: Vec  # what the parabola through the last three adds to that; 0 where there are fewer

    @staticmethod
    def at(w: Vec) -> Path:
        """Before the first stage."""
        return Path(0, w, w, w.zeros())

    def then(self, end: Vec) -> Path:
        """With the end of one more stage."""
        line = end + (end - self.end) / (GROWTH - 1) if self.stages else end
        bend = (line - self.line) / (GROWTH**2 - 1) if self.stages > 1 else end.zeros()
        return Path(self.stages + 1, end, line, bend)

    def limit(self) -> Vec:
        """w: the parabola at 1/c = 0, as far as there are stages for it."""
        return self.line + self.bend

    def ahead(self) -> Vec:
        """The parabola at the next penalty."""
        return self.end.lerp(self.limit(), 1 - 1 / GROWTH) - self.bend * ((GROWTH - 1) / GROWTH**3)

    def ahead_by_line(self) -> Vec:
        """The line at the next penalty."""
        return self.end.lerp(self.line, 1 - 1 / GROWTH)
