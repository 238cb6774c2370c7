"""JAXopt: its own L-BFGS inside, differentiated implicitly, one jitted function."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version

import numpy as np

from .side import Answer, Call, Peer, Side
from .task import Task


def jaxopt() -> Peer:
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"  # one thread, like the others
    import jax  # pyright: ignore[reportMissingImports]
    import jaxopt as jo  # pyright: ignore[reportMissingImports]
    from jaxopt.linear_solve import solve_cg  # pyright: ignore[reportMissingImports]

    jax.config.update("jax_enable_x64", True)

    def make(task: Task, **options: object) -> Call:
        lower, upper = task.in_jax(jax)
        solver = jo.LBFGS(fun=lambda W, x: lower(x, W), **options)

        def value(x: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
            W = solver.run(start, x).params
            return upper(x, W), W

        both = jax.jit(jax.value_and_grad(value, has_aux=True))
        both(task.x, task.y)  # compiles

        def call(x: np.ndarray, y: np.ndarray) -> Answer:
            (f, W), g = both(x, y)
            return Answer(float(f), np.asarray(g), np.asarray(W))

        return call

    def ladder() -> Iterator[Side]:
        for k in range(2, 11):
            solve = partial(solve_cg, tol=10.0 ** -(k - 1), maxiter=1000)
            made = partial(make, tol=10.0**-k, maxiter=1000, implicit_diff_solve=solve)
            yield Side(f"LBFGS(tol=1e-{k}), solve_cg(tol=1e-{k - 1})", made)

    defaults = Side("LBFGS() as it comes: tol 1e-3, normal CG to 1e-5", make)
    return Peer("jaxopt", version("jaxopt"), ladder, (defaults,), defaults)
