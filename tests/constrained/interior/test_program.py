"""The problem on numpy arrays: scales, fixed entries, derivatives, dense and sparse."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from constrained import Box, ConstrainedProblem, Function, InteriorPoint, solve
from constrained.core.vec import tensors
from constrained.interior.program import Program

F64 = torch.float64
X0, LAM = torch.tensor([0.5, -1.0, 2.0], dtype=F64), np.array([0.3, -2.0, 0.7])


def f(x):
    return (x**4).sum() + x[0] * x[1] * x[2]


def c(x):
    return (x[0] * x[2] - 1)[None]


def h(x):
    return torch.stack([(x**2).sum() - 3, 1e4 * x[1] - x[0] ** 3])


def program(problem):
    oracle = problem.oracle()
    return Program.of(oracle, oracle.variables["x"])


def at(one):
    return one.at(one.flat(one.like), np.array([0.1, 0.2]))


def lagrangian(x):
    return f(x) + torch.cat([c(x), h(x)]) @ torch.from_numpy(LAM)


def test_values_and_derivatives_are_those_of_the_functions():
    one = at(program(ConstrainedProblem(objective=f, equality=c, inequality=h, x=X0)))
    stacked = torch.cat([c(X0), h(X0)])
    assert one.f == float(f(X0))
    np.testing.assert_allclose(one.C, stacked.numpy() + np.array([0, 0.1, 0.2]))
    np.testing.assert_allclose(one.g, torch.autograd.functional.jacobian(f, X0))
    np.testing.assert_allclose(one.J, torch.autograd.functional.jacobian(lambda x: torch.cat([c(x), h(x)]), X0))
    np.testing.assert_allclose(one.hessian(LAM), torch.autograd.functional.hessian(lagrangian, X0), atol=1e-12)
    without = torch.autograd.functional.hessian(lambda x: lagrangian(x) - f(x), X0)
    np.testing.assert_allclose(one.hessian(LAM, objective=0.0), without, atol=1e-12)


def test_steep_rows_are_scaled_down():
    plain = program(ConstrainedProblem(objective=lambda x: 1e6 * f(x), equality=c, inequality=h, x=X0))
    scaled = at(plain.scaled(at(plain)))
    assert np.abs(scaled.g).max() == pytest.approx(100)
    np.testing.assert_allclose(scaled.program.rows, [1, 1, 1e-2])
    again = np.array([1.0, 1, 1e-2]) * LAM
    truth = torch.autograd.functional.hessian(
        lambda x: scaled.program.sigma * 1e6 * f(x) + torch.cat([c(x), h(x)]) @ torch.from_numpy(again), X0
    )
    np.testing.assert_allclose(scaled.hessian(LAM), truth, rtol=1e-10)


def test_fixed_entries_are_no_unknowns():
    X = Box(torch.tensor([-5.0, -1.0, 0.0], dtype=F64), torch.tensor([5.0, -1.0, 3.0], dtype=F64))
    one = at(program(ConstrainedProblem(objective=f, equality=c, inequality=h, x=X0, X=X)))
    assert one.program.n == 2
    np.testing.assert_allclose(one.g, torch.autograd.functional.jacobian(f, X0)[[0, 2]])
    assert one.J.shape == (3, 2)
    assert one.program.whole(np.array([7.0, 8.0])).tolist() == [7, -1, 8]
    truth = torch.autograd.functional.hessian(lagrangian, X0)[[0, 2]][:, [0, 2]]
    np.testing.assert_allclose(one.hessian(LAM), truth, atol=1e-12)


def test_sparse_matrices_stay_sparse_and_say_the_same():
    def sparse(function, rows):
        def jacobian(x):
            return csr_array(torch.autograd.functional.jacobian(function, x).numpy())

        def hessian(x, lam):
            return csr_array(torch.autograd.functional.hessian(lambda z: function(z) @ lam, x).numpy())

        return Function(function, jacobian=jacobian, hessian=hessian)

    own = Function(
        f,
        gradient=lambda x: torch.autograd.functional.jacobian(f, x),
        hessian=lambda x: csr_array(torch.autograd.functional.hessian(f, x).numpy()),
    )
    given = at(program(ConstrainedProblem(objective=own, equality=sparse(c, 1), inequality=sparse(h, 2), x=X0)))
    plain = at(program(ConstrainedProblem(objective=f, equality=c, inequality=h, x=X0)))
    assert given.program.sparse
    assert not plain.program.sparse
    np.testing.assert_allclose(given.J.toarray(), plain.J)
    np.testing.assert_allclose(given.hessian(LAM).toarray(), plain.hessian(LAM), atol=1e-12)
    np.testing.assert_allclose(given.hessian(LAM, 0.0).toarray(), plain.hessian(LAM, 0.0), atol=1e-12)


def test_replayed_programs_say_the_same_of_all_rows():
    problem = ConstrainedProblem(objective=f, equality=c, inequality=h, x=X0)
    traced = problem.traced()
    assert traced.replay.reason == ""
    one, other = at(program(problem)), at(program(traced))
    np.testing.assert_allclose(other.C, one.C, rtol=1e-14)
    np.testing.assert_allclose(other.J, one.J, rtol=1e-14)
    np.testing.assert_allclose(other.hessian(LAM), one.hessian(LAM), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(other.hessian(LAM, 0.0), one.hessian(LAM, 0.0), rtol=1e-13, atol=1e-13)
    of_c = [p.oracle().tape(p.variables()["x"]) for p in (problem, traced)]
    torch.testing.assert_close(of_c[1].c, of_c[0].c)
    torch.testing.assert_close(of_c[1].jacobian, of_c[0].jacobian)
    lam = torch.ones(1, dtype=F64)
    torch.testing.assert_close(of_c[1].lagrangian(lam).hessian, of_c[0].lagrangian(lam).hessian)
    torch.testing.assert_close(of_c[1].lagrangian(lam, 0.5).hessian, of_c[0].lagrangian(lam, 0.5).hessian)


def test_a_point_costs_one_call_of_each_function():
    calls = dict.fromkeys("fch", 0)

    def counted(name, function):
        def wrapped(x):
            calls[name] += 1
            return function(x)

        return wrapped

    parts = dict(objective=counted("f", f), equality=counted("c", c), inequality=counted("h", h))
    one = at(program(ConstrainedProblem(x=X0, **parts)))
    calls.update(dict.fromkeys(calls, 0))
    there = one.program.at(one.x + 0.1, one.s)
    _ = there.g, there.J, there.hessian(LAM), there.slid(one.s + 1).C
    assert calls == {"f": 1, "c": 1, "h": 1}


def test_the_users_hessian_is_asked_once_a_step():
    calls = []

    def hessian(x):
        calls.append(1)
        return torch.autograd.functional.hessian(f, x)

    own = Function(f, gradient=lambda x: torch.autograd.functional.jacobian(f, x), hessian=hessian)
    problem = ConstrainedProblem(objective=own, x=X0)
    oracle, solver = problem.oracle().remember(), InteriorPoint(tol=1e-8)
    state = solver.init(oracle, problem.begin(oracle, None))
    for _ in range(3):
        calls.clear()
        assert solver.revisit(oracle, state)
        oracle.memory.step_begins(with_graphs=True)
        state = solver.step(oracle, state)
        assert len(calls) == 1


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("X", [Box(-2, 3), Box(low=[0.5, -2, -2], high=[0.5, 3, 3])])
def test_a_step_from_the_iterate_at_hand_is_that_from_the_state(dtype, X):
    problem = ConstrainedProblem(objective=f, equality=c, inequality=h, x=X0.to(dtype), X=X)
    oracle, other, solver = problem.oracle().remember(), problem.oracle(), InteriorPoint(tol=1e-8 if dtype is F64 else 1e-4)
    state = solver.init(oracle, problem.begin(oracle, None))
    assert (oracle.memory.behind(state) is not None) == (dtype is F64)
    for _ in range(6):
        assert solver.revisit(oracle, state)
        oracle.memory.step_begins(with_graphs=True)
        state, again = solver.step(oracle, state), solver.step(other, state)
        for one, two in zip(tensors(state), tensors(again), strict=True):
            assert torch.equal(one, two)
        assert (state.value, state.residual, state.outcome) == (again.value, again.residual, again.outcome)


def test_residuals_of_a_traced_run_are_of_the_functions_as_they_are_now():
    level = [1.0]  # a number that the recording holds
    traced = ConstrainedProblem(objective=lambda x: (x**2).sum(), equality=lambda x: x.sum() - level[0], x=X0).traced()
    assert traced.replay.reason == ""
    right = solve(traced, InteriorPoint())
    assert right.success
    assert "certificate" in right.calls.by
    level[0] = 2.0
    stale = solve(traced, InteriorPoint())
    assert not stale.success
    assert stale.residuals()["feasibility"] == pytest.approx(1.0)
