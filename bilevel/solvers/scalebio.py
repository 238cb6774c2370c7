"""ScaleBiO: first-order bilevel reweighting of data sources, of Pan, Zhang, Zhang, Pan, Xu et al. (2024), with LISA.

Problem
    min over x of f(x, w(x)), w(x) = argmin g(x, .), g(x, w) = sum_i p_i(x) l_i(w): a `Mixture` of the losses of m sources, p the
    softmax of the logits x; f the loss on trusted data. All losses by mini-batches xi, zeta.

Reformulation
    min over x, w, max over u of f(x, w) + alpha (g(x, w) - g(x, u)): u goes to w(x), w is pulled from it towards f by 1 / alpha.

Algorithm (step k, with the blocks that the schedule lets move)
    (0) at k = sync, 2 sync, 4 sync, ...: w <- u, with the optimizer's state of u
    (1) u <- P_Y(optimizer's step along g_u(x, u; zeta), at most `clip` long),  l(u) kept
    (2) w <- P_Y(optimizer's step along g_w(x, w; zeta) + f_w(x, w; xi) / alpha, at most `clip` long),  l(w) kept
    (3) d <- l(w) - l(u), both of before the steps
    (4) x <- P_X(optimizer's step along f_x(x, w; xi) + alpha p'(x) d)   for the softmax p'(x) d = p (d - p'd), entry by entry
    answer: (x, u);  w stays in the state

Notation
    x = the paper's lambda, f = L1, g = L2. Sources on which w, pulled to the trusted data, is better than u gain weight.
    at_u, at_w: the gradients of (1) and (2) and the losses l there, from `oracle.mixed`; g.pull(x, d) = p'(x) d. xi and zeta are
    `accumulate` batches each.

References
    arXiv 2406.19976; LISA: arXiv 2403.17919. The published code descends on alpha g for u and on f + alpha g for w: divided by
    alpha here, which is the same under Adam and the right scale under SGD; x without weight decay, which there pulls to
    uniform weights by accident; u and w share zeta, dropout masks and blocks, so that their noise cancels in d. (0) is this
    library's: two models that are far from converged and learn apart for long differ by more than f, and d says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from constrained.core.live import norm
from constrained.core.optimizers import AdamW, Optimizer, OptState, step_, take_
from constrained.core.options import Positive, Schedule, Steps, at
from constrained.core.problem import Point
from constrained.core.states import solver_state
from constrained.core.status import Feature
from constrained.core.vec import Vec

from ..blocks import AllBlocks, BlockSchedule
from ..oracle import BilevelOracle
from ..single_loop import SingleLoop, nothing, size

WATCHED = 32  # sources up to which each weight is monitored
Grads = Sequence[Tensor | None]


@solver_state("ScaleBiOState")
class ScaleBiOState:
    """The logits, the two copies of the lower variable, and their optimizers."""

    k: int
    x: Vec
    u: Vec  # near the minimiser of g
    w: Vec  # near the minimiser of f / alpha + g
    outer: OptState
    inner_u: OptState
    inner_w: OptState
    scale: float  # 1 + the norm of the start
    weights: Tensor  # p(x)
    losses: Tensor  # l(u) on the last batch
    upper: Tensor  # f(x, w) on the last batch
    names: tuple[str, ...]  # of the sources


@dataclass(frozen=True, kw_only=True)
class ScaleBiO(SingleLoop[ScaleBiOState]):
    """First-order reweighting of data sources: weights move to where w, pulled to trusted data, is better than u, which is not.

    u by `inner` along g_u, w along g_w + f_w / alpha, x by `outer` along f_x + alpha p'(x) d.

    alpha: weight of the lower level; ||w - u|| shrinks like 1 / alpha. inner: the optimizer of u and w, each with a state of its
    own; its learning rate is that of plain training. outer: of x; the sum of its learning rates must be some 4 for a source to
    lose its weight. blocks: which parts of u and w move, e.g. `LISA(layers=2)`; what rests is not differentiated and has no
    optimizer state. accumulate: batches of one step, whose gradients are averaged. clip: the largest norm of a step's gradient
    of u and of w; None does not clip. sync: w starts from u anew after so many steps, and again after twice as many, and so on;
    None: never, as published. The answer is the last x with u. A run ends at `max_steps`, which must be given.

    With the default accumulate=1 it takes three mini-batch gradients a step, first order only: twice that of plain training on
    the same batch, and one on trusted data.

    Not tuning-free: learning rates are choices. u and w are models that still learn: where one leaves a plateau before the other,
    by chance and a large learning rate, d says more about that than about the sources, and weight may run to the wrong one and
    stay. `sync` is there for that; a smaller rate of `inner` or a trained start help too. Dropout, losses in half precision and
    sources that come and go in batches make d noise: use `SourceBatches`. How weight splits between sources that are equally
    good is arbitrary. w has seen the trusted data: judge by u, or by a model trained anew with `Mixture.sampling_plan`.

    >>> ScaleBiO(outer=AdamW(lr=0.01)).alpha
    10.0

    Source: arXiv 2406.19976; see the module for the deviations.
    """

    supports: ClassVar[Feature] = SingleLoop.supports | Feature.Y_SET | Feature.LIVE | Feature.MIXTURE
    requires: ClassVar[Feature] = Feature.LOWER | Feature.MIXTURE

    alpha: Positive | Schedule = 10.0
    inner: Optimizer = AdamW(lr=1e-3)
    outer: Optimizer = AdamW(lr=2e-2)
    blocks: BlockSchedule = AllBlocks()
    accumulate: Steps = 1
    clip: Positive | None = None
    sync: Steps | None = 20

    def init(self, oracle: BilevelOracle, start: Point) -> ScaleBiOState:
        sources = _sources(oracle)
        x, u, w = start.x, start.y, start.y.clone()  # each with memory of its own: steps write into them
        oracle.g.value((x, w), oracle.g.draw(0))  # sharded modules fix their dtypes at the first forward: before any block rests
        self.blocks.active(u.paths(), oracle.g.seed, 0)
        p = sources.weights(x)
        return ScaleBiOState(
            k=0,
            x=x,
            u=u,
            w=w,
            outer=self.outer.init(x),
            inner_u=self.inner.init(u),
            inner_w=self.inner.init(w),
            scale=size(x, u),
            weights=p,
            losses=torch.zeros_like(p),
            upper=nothing(u),
            names=sources.names or tuple(str(i) for i in range(len(p))),
        )

    def step(self, oracle: BilevelOracle, state: ScaleBiOState) -> ScaleBiOState:
        f, g, X, Y, A = oracle.f, _sources(oracle), oracle.X, oracle.Y, self.accumulate
        k, x, u, w, p = state.k, state.x, state.u, state.w, state.weights
        alpha, lr = at(self.alpha, k), at(self.inner.lr, k)
        inner_w = state.inner_w
        if self.sync is not None and k in (self.sync * 2**i for i in range(k.bit_length())):
            w, inner_w = w.take(u), take_(inner_w, state.inner_u)  # (0)
        draws = [(f.draw(n), g.draw(n)) for n in range(k * A, (k + 1) * A)]
        moving = self.blocks.active(u.paths(), g.seed, k)

        at_u = oracle.mixed(x, u, p, [zeta for _, zeta in draws], moving=moving)
        inner_u = step_(self.inner, u, self._clipped(at_u.y), state.inner_u, lr)  # (1)
        u = Y.project(u)  # (1)
        at_u.y.clear()  # gradients are large: let go before the next ones are made

        xis, zetas = zip(*draws)
        at_w = oracle.mixed(x, w, p, zetas, xis, weight=1 / alpha, moving=moving)
        inner_w = step_(self.inner, w, self._clipped(at_w.y), inner_w, lr)  # (2)
        w = Y.project(w)  # (2)

        d = at_w.losses - at_u.losses  # (3)
        along = at_w.x + g.pull(x, d) * alpha  # (4)
        x, outer = self.outer.update(x, along.leaves, state.outer, at(self.outer.lr, k))  # (4)
        x = X.project(x)  # (4)
        new = replace(state, k=k + 1, x=x, u=u, w=w, outer=outer, inner_u=inner_u, inner_w=inner_w)
        return replace(new, weights=g.weights(x), losses=at_u.losses, upper=at_w.upper)

    def copies(self, state: ScaleBiOState) -> tuple[Vec, ...]:
        return state.w, state.u

    def monitor(self, state: ScaleBiOState) -> dict[str, float | Tensor]:
        weights = {f"weight {name}": p for name, p in zip(state.names, state.weights)} if len(state.names) <= WATCHED else {}
        return {"upper": state.upper, "lower": state.weights @ state.losses, **weights} if state.k else {}

    def _clipped(self, grads: Grads) -> Grads:
        """Scaled to norm `clip` where they are longer."""
        given = [grad for grad in grads if grad is not None]
        if self.clip is not None and given:
            shrink = float((self.clip / norm(given)).clamp(max=1.0))
            for grad in given:
                grad.mul_(shrink)
        return grads


def _sources(oracle: BilevelOracle):
    assert oracle.sources is not None  # Feature.MIXTURE is required
    return oracle.sources
