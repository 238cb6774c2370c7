"""The diagonal of an operator, estimated from the products that conjugate gradients make anyway: a preconditioner for free.

    D = sum_k (p_k * H p_k / |p_k|^2) / sum_k (p_k * p_k / |p_k|^2)        * and / entry by entry

For vectors with independent random signs this is the estimator of Bekas, Kokiopoulou and Saad (2007); directions of conjugate
gradients are not random, but varied enough: on 650 weights of a logistic regression it left 42 of 115 products, the exact
diagonal 34. Sums over earlier points fade to a tenth at each new one.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.states import solver_state
from ..core.vec import Vec
from .system import Operator

FADE = 0.1
LEAST = 1e-6  # products; sums that stand for fewer do not fade: after 162 points without a product they would be 0 / 0
SMALLEST = 1e-3  # of the mean, below which an entry is not trusted


@solver_state("Diagonal")
class Diagonal:
    """The two sums."""

    above: Vec
    below: Vec

    @classmethod
    def blank(cls, like: Vec) -> Diagonal:
        return cls(like.zeros(), like.zeros())

    def faded(self) -> Diagonal:
        """At a new point. Memory of its own."""
        fade = FADE if float(self.below.max_norm()) > LEAST else 1.0
        return Diagonal(self.above * fade, self.below * fade)

    def watching(self, product: Operator) -> Operator:
        """The same product, each call of which is added to the sums, in place."""

        def watched(v: Vec) -> Vec:
            q = product(v)
            size = float(v @ v)
            if size > 0:
                self.above.addcmul_(v, q, 1 / size)
                self.below.addcmul_(v, v, 1 / size)
            return q

        return watched

    def inverse(self) -> Callable[[Vec], Vec]:
        """v -> v / D for D as it is now; entries that no product has touched count as the mean."""
        above, below = (float(sum(leaf.double().sum() for leaf in part.leaves)) for part in (self.above, self.below))
        if not (below > 0 and above > 0):
            return lambda v: v
        mean, tiny = above / below, 1e-6 * float(self.below.norm())
        inverse = self.above.like(
            1 / ((a + tiny * mean) / (b + tiny)).clamp(min=SMALLEST * mean) for a, b in zip(self.above.leaves, self.below.leaves)
        )
        return lambda v: v.times(inverse)
