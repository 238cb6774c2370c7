"""How a set bends the derivative of a minimiser: y = P_Y(y - grad g(y)) where y minimises g over Y.

With D the derivative of P_Y at y - grad g, T the projection on the range of D and D^+ = T + C there,

    dy = -v,   (T H T + C) v = T b      for a change b of grad g at y, H the Hessian of g

For polyhedral sets D = T and C = 0: T keeps the faces that y - grad g pushes against; a ball on whose surface y lies adds the
curvature of the surface, C = (|z - center| / radius - 1) T.

References: Bonnans and Shapiro 2000; for the projections' derivatives the references in `simple.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from ..core.errors import Unsuitable
from ..core.vec import Vec
from .base import ConvexSet
from .product import Product
from .simple import Affine, Ball, Everywhere, Halfspace, Simplex


@dataclass(frozen=True)
class Tangent:
    """`project`: v -> T v. `bend`: v -> C v, None where C = 0. `whole`: T is the identity."""

    project: Callable[[Vec], Vec]
    bend: Callable[[Vec], Vec] | None = None
    whole: bool = False


FREE = Tangent(lambda v: v, whole=True)


@functools.singledispatch
def tangent(Y: ConvexSet, z: Vec) -> Tangent:
    """T and C of the set at z, the point that was projected: z = y - grad g(y). Where each entry projects alone, T keeps those
    that the projection left alone. Raises Unsuitable for a set that has none here; `tangent.register` adds one.

    >>> import torch
    >>> from constrained import Box
    >>> z = Vec.of(torch.tensor([-0.5, 0.5], dtype=torch.float64))
    >>> tangent(Box(0, 1), z).project(Vec.of(torch.ones(2, dtype=torch.float64))).tree()
    tensor([0., 1.], dtype=torch.float64)
    """
    if Y.entrywise:
        moved = Y.project(z)
        inside = z.like((a == b).to(a.dtype) for a, b in zip(z.leaves, moved.leaves))
        return Tangent(lambda v: v.times(inside))
    raise Unsuitable(f"Y: derivatives through the set {Y!r:.60} are not known: register one on tangent, or use Penalty()")


@functools.singledispatch
def has_tangent(Y: ConvexSet) -> bool:
    """`tangent` knows the set, and all the parts of a Product."""
    if isinstance(Y, Product):
        return all(has_tangent(part) for part in Y.sets.values())
    return Y.entrywise or tangent.dispatch(type(Y)) is not tangent.dispatch(ConvexSet)


@tangent.register
def _(Y: Everywhere, z: Vec) -> Tangent:
    return FREE


@tangent.register
def _(Y: Simplex, z: Vec) -> Tangent:
    support = (Y.project(z).leaves[0] > 0).to(z.dtype)
    count = support.sum(-1, keepdim=True)

    def project(v: Vec) -> Vec:
        kept = v.leaves[0] * support
        return v.like([kept - support * (kept.sum(-1, keepdim=True) / count)])

    return Tangent(project)


@tangent.register
def _(Y: Affine, z: Vec) -> Tangent:
    zero = Y.project(z.zeros())  # P(v) - P(0) is the linear part
    return Tangent(lambda v: Y.project(v) - zero)


@tangent.register
def _(Y: Halfspace, z: Vec) -> Tangent:
    if float((z - Y.project(z)).norm()) == 0:
        return FREE
    a, _, square = Y._on(z)  # z - P(z) is along a, but has few digits where z is near the set
    return Tangent(lambda v: v.unravel((flat := v.ravel().double()) - a * ((a @ flat) / square)))


@tangent.register
def _(Y: Ball, z: Vec) -> Tangent:
    y = Y.project(z)
    length = float((z - y).norm())
    if length == 0:
        return FREE
    if Y.radius == 0:
        return Tangent(lambda v: v.zeros())
    center = Y._on(z)
    out = y - y.like(center) if center else y  # along z - y, which has few digits where z is near the set

    def project(v: Vec) -> Vec:
        return v.add(out, -(out @ v) / Y.radius**2)

    return Tangent(project, lambda v: project(v) * (length / Y.radius))  # |z - center| = radius + |z - y|


@tangent.register
def _(Y: Product, z: Vec) -> Tangent:
    places, parts = {}, {}
    for key, (found, spec) in Y._on(z).items():
        places[key] = found, spec
        parts[key] = tangent(Y.sets[key], Vec([z.leaves[i] for i in found], spec))

    def project(v: Vec) -> Vec:
        leaves = dict(enumerate(v.leaves))
        for key, (found, spec) in places.items():
            leaves.update(zip(found, parts[key].project(Vec([v.leaves[i] for i in found], spec)).leaves))
        return v.like(leaves.values())

    def bend(v: Vec) -> Vec:
        leaves = dict(enumerate(v.zeros().leaves))
        for key, (found, spec) in places.items():
            curved = parts[key].bend
            if curved is not None:
                leaves.update(zip(found, curved(Vec([v.leaves[i] for i in found], spec)).leaves))
        return v.like(leaves.values())

    return Tangent(project, bend if any(part.bend is not None for part in parts.values()) else None, Y.whole)
