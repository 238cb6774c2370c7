"""Hessians and Jacobians that the user gives as matrices, dense and sparse: products, the KKT matrix, solutions."""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import minimize
from torch import Tensor

from bilevel import Function, solve
from constrained import ConstrainedProblem, Direct, Minres, SketchedNewton, TrustConstr
from constrained.core.data import FullBatch
from constrained.core.derivatives.counts import Calls
from constrained.core.derivatives.matrix import Matrix
from constrained.core.derivatives.objective import Objective
from constrained.core.derivatives.tape import Lagrangian, Tape
from constrained.core.errors import ProblemError, Unsuitable
from constrained.core.status import Feature
from constrained.core.vec import Vec
from constrained.newton.kkt_system import kkt_system
from problems.pde import WEIGHT, poisson_control

F64 = torch.float64

# -- a chain: Luksan and Vlcek, Sparse and partially separable test problems, report 767, 1999, problem 5.1 -----------------
#   f   = sum 100 (x_i^2 - x_i+1)^2 + (x_i - 1)^2
#   c_i = 3 x_i+1^3 + 2 x_i+2 + sin^2 x_i+1 - sin^2 x_i+2 + 4 x_i+1 - x_i e^(x_i - x_i+1) - 8


def f(x):
    return (100 * (x[:-1] ** 2 - x[1:]) ** 2 + (x[:-1] - 1) ** 2).sum()


def gradient(x: np.ndarray) -> np.ndarray:
    a, r = x[:-1], x[:-1] ** 2 - x[1:]
    return np.append(400 * a * r + 2 * (a - 1), 0.0) - np.insert(200 * r, 0, 0.0)


def hessian(x: np.ndarray) -> sparse.sparray:
    a, b = x[:-1], x[1:]
    diagonal = np.append(1200 * a**2 - 400 * b + 2, 0.0) + np.insert(np.full(len(a), 200.0), 0, 0.0)
    return sparse.diags_array([-400 * a, diagonal, -400 * a], offsets=[-1, 0, 1])


def c(x):
    lib = torch if isinstance(x, Tensor) else np
    a, b, d = x[:-2], x[1:-1], x[2:]
    return 3 * b**3 + 2 * d + lib.sin(b) ** 2 - lib.sin(d) ** 2 + 4 * b - a * lib.exp(a - b) - 8


def jacobian(x: np.ndarray) -> sparse.sparray:
    a, b, d = x[:-2], x[1:-1], x[2:]
    e = np.exp(a - b)
    rows = [-(1 + a) * e, 9 * b**2 + np.sin(2 * b) + 4 + a * e, 2 - np.sin(2 * d)]
    return sparse.diags_array(rows, offsets=[0, 1, 2], shape=(len(a), len(x)))


def bend(x: np.ndarray, w: np.ndarray) -> sparse.sparray:
    a, b, d = x[:-2], x[1:-1], x[2:]
    e = np.exp(a - b)
    diagonal = np.zeros(len(x))
    diagonal[:-2] -= w * (2 + a) * e
    diagonal[1:-1] += w * (18 * b + 2 * np.cos(2 * b) - a * e)
    diagonal[2:] -= 2 * w * np.cos(2 * d)
    off = np.append(w * (1 + a) * e, 0.0)
    return sparse.diags_array([off, diagonal, off], offsets=[-1, 0, 1])


def chain_start(n: int) -> Tensor:
    return torch.where(torch.arange(n) % 2 == 0, -1.2, 1.0).to(F64)


CHAIN_F = Function.numpy(f, gradient=gradient, hessian=hessian)
CHAIN_C = Function.numpy(c, jacobian=jacobian, hessian=bend)


def torch_csr(matrix: sparse.sparray) -> Tensor:
    return torch.as_tensor(matrix.toarray()).to_sparse_csr()


def to_numpy(function, back=lambda out: out):
    """The function on tensors; `back` makes what it returns."""
    return lambda *args: back(function(*(arg.numpy() for arg in args)))


# Functions of torch vectors whose derivatives come in every form.
dense, tensor = lambda A: torch.as_tensor(A.toarray()), torch.as_tensor
OBJECTIVES = {
    "autodiff": f,
    "gradient": Function(f, gradient=to_numpy(gradient, tensor)),
    "dense": Function(f, hessian=to_numpy(hessian, dense)),
    "scipy": Function(f, hessian=to_numpy(hessian)),
    "csr": Function(f, hessian=to_numpy(hessian, torch_csr)),
    "hvp": Function(f, hvp=to_numpy(lambda x, v: hessian(x) @ v, tensor)),
    "numpy": CHAIN_F,
}
CONSTRAINTS = {
    "none": None,
    "autodiff": c,
    "jacobian": Function(c, jacobian=to_numpy(jacobian)),
    "csr jacobian": Function(c, jacobian=to_numpy(jacobian, torch_csr)),
    "dense jacobian": Function(c, jacobian=to_numpy(jacobian, dense)),
    "vjp": Function(c, vjp=to_numpy(lambda x, w: jacobian(x).T @ w, tensor)),
    "hessian": Function(c, hessian=to_numpy(bend)),
    "dense": Function(c, jacobian=to_numpy(jacobian, dense), hessian=to_numpy(bend, lambda A: A.toarray())),
    "jacobian, hvp": Function(c, jacobian=to_numpy(jacobian), hvp=to_numpy(lambda x, w, v: bend(x, w) @ v, tensor)),
    "numpy": CHAIN_C,
}
N = 9
AT = torch.linspace(-0.7, 0.9, N, dtype=F64)
LAM = torch.linspace(1, -2, N - 2, dtype=F64)
TRUE_H = {with_c: torch.func.hessian(lambda x, k=with_c: f(x) + k * (LAM @ c(x)))(AT) for with_c in (0, 1)}
TRUE_J = torch.func.jacrev(c)(AT)


def lagrangian(objective, constraint, at: Tensor = AT, lam: Tensor = LAM) -> Lagrangian:
    problem = ConstrainedProblem(objective=objective, equality=constraint, x=at)
    return problem.oracle().tape(Vec.of(at)).lagrangian(lam if constraint is not None else lam[:0])


def close(found: Tensor, true: Tensor) -> None:
    torch.testing.assert_close(found, true, rtol=1e-12, atol=1e-12 * max(1.0, float(true.abs().max())) if true.numel() else 0)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_products_of_every_mixture(objective, constraint):
    at = lagrangian(OBJECTIVES[objective], CONSTRAINTS[constraint])
    with_c = constraint != "none"
    H, J = TRUE_H[with_c], TRUE_J if with_c else TRUE_J[:0]
    lam = LAM if with_c else LAM[:0]
    grad = torch.func.grad(f)(AT)
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.randn(3, k, generator=generator, dtype=F64) for k in (N, len(J)))
    close(at.gradient, grad + J.T @ lam)
    close(at.hessian, H)
    close(at.tape.jacobian, J)
    close(at.tape.vjp(V[0]), J.T @ V[0])
    tops, bottoms = at.products(U, V)
    close(tops, U @ H + V @ J)
    close(bottoms, U @ J.T)
    top, bottom = at.product(U[0], V[0])
    close(top, tops[0])
    close(bottom, bottoms[0])


def test_float32_and_trees_in_the_order_of_ravel():
    """f = sum a^4 / 12 + sum a * b of {"b": 2 x 2, "a": 2}, c = b flat: matrices in the order b, a."""
    x = {"b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "a": torch.tensor([5.0, 6.0])}
    H = np.zeros((6, 6))
    H[[4, 5], [4, 5]] = [25, 36]
    H[0, 4] = H[4, 0] = H[1, 5] = H[5, 1] = 1

    def value(x):
        return (x["a"] ** 4).sum() / 12 + x["a"] @ x["b"][0]

    for form in (sparse.csr_array(H), sparse.coo_array(H), H, torch.as_tensor(H), torch.as_tensor(H).to_sparse()):
        own = Function(value, hessian=lambda x, form=form: form)
        rows = Function(
            lambda x: x["b"].reshape(-1), jacobian=lambda x: sparse.eye_array(4, 6), hessian=lambda x, w: 0 * sparse.eye_array(6)
        )
        at = ConstrainedProblem(objective=own, equality=rows, x=x).oracle().tape(Vec.of(x)).lagrangian(torch.ones(4))
        top, bottom = at.product(torch.arange(6.0), torch.arange(4.0))
        assert top.dtype == bottom.dtype == at.hessian.dtype == torch.float32
        torch.testing.assert_close(top, torch.as_tensor(H).float() @ torch.arange(6.0) + torch.tensor([0.0, 1, 2, 3, 0, 0]))
        torch.testing.assert_close(bottom, torch.arange(4.0))
    auto = torch.func.hessian(lambda flat: value({"b": flat[:4].reshape(2, 2), "a": flat[4:]}))(Vec.of(x).ravel())
    torch.testing.assert_close(auto, torch.as_tensor(H).float())


def test_hessians_of_mini_batches_get_the_batch():
    rows = torch.randn(8, N, generator=torch.Generator().manual_seed(1), dtype=F64)
    own = Function(lambda x, batch: 0.5 * ((batch @ x) ** 2).sum(), hessian=lambda x, batch: batch.T @ batch)
    objective = Objective("objective", own, Calls(), sampler=FullBatch(rows))
    at = Tape(objective, [], Vec.of(AT)).lagrangian(LAM[:0])
    close(at.product(AT, LAM[:0])[0], rows.T @ (rows @ AT))


@pytest.mark.parametrize(
    ("function", "constraint", "told"),
    [
        (Function(lambda x: x @ x, hessian=lambda: 1), None, "objective.hessian: expected a function of x"),
        (lambda x: x @ x, Function(lambda x: x[:1], hessian=lambda x: 1), "equality.hessian: expected a function of x, lam"),
        (Function.numpy(lambda x: x @ x, gradient=lambda x: x, hessian=lambda x, v: 1), None, "objective.hessian"),
    ],
)
def test_a_hessian_of_other_arguments_is_refused_at_once(function, constraint, told):
    problem = ConstrainedProblem(objective=function, equality=constraint, x=torch.ones(2, dtype=F64))
    with pytest.raises(ProblemError, match=told):
        solve(problem)


def test_a_matrix_that_the_user_writes_into_again_is_kept_as_it_was():
    mine = hessian(AT.numpy()).tocsr()
    at = lagrangian(Function(f, hessian=lambda x: mine), None)
    before = at.product(AT, LAM[:0])[0]
    mine.data[:] = 7.0
    assert torch.equal(at.product(AT, LAM[:0])[0], before)


# -- the KKT matrix ---------------------------------------------------------------------------------------------------------
def true_system(rows: Tensor, shift: float, gamma: float) -> Tensor:
    J = rows[:, None] * TRUE_J
    eye = torch.eye(N, dtype=F64)
    return torch.cat([torch.cat([TRUE_H[1] + shift * eye, J.T], 1), torch.cat([J, -gamma * eye[: len(J), : len(J)]], 1)])


def test_the_sparse_kkt_matrix():
    rows = torch.linspace(0.5, 2, N - 2, dtype=F64)
    K = true_system(rows, 0.3, 0.2)
    for objective in ("scipy", "csr", "numpy"):
        system = kkt_system(lagrangian(OBJECTIVES[objective], CHAIN_C), rows, shift=0.3, gamma=0.2)
        assert system.sparse is not None
        close(torch.as_tensor(system.sparse().toarray()), K)
        close(torch.cat([system.product(Vec.of(e)).ravel()[None] for e in torch.eye(len(K), dtype=F64)]), K)
    alone = kkt_system(lagrangian(CHAIN_F, None), rows[:0], shift=0.3)
    assert alone.sparse is not None
    close(torch.as_tensor(alone.sparse().toarray()), TRUE_H[0] + 0.3 * torch.eye(N, dtype=F64))


def test_dense_matrices_make_a_dense_kkt_matrix():
    rows = torch.linspace(0.5, 2, N - 2, dtype=F64)
    system = kkt_system(lagrangian(OBJECTIVES["dense"], CONSTRAINTS["dense"]), rows, shift=0.3, gamma=0.2)
    assert system.sparse is None
    assert system.matrix is not None
    close(system.matrix(), true_system(rows, 0.3, 0.2))


def test_how_much_of_the_matrix_is_stored_decides():
    """A band stays sparse; a sparse Jacobian below a dense Hessian makes K dense."""
    at = lagrangian(CHAIN_F, CHAIN_C, chain_start(200), torch.ones(198, dtype=F64))
    assert kkt_system(at, torch.ones(198, dtype=F64)).matrix is None
    at = lagrangian(OBJECTIVES["dense"], CHAIN_C, chain_start(200), torch.ones(198, dtype=F64))
    system = kkt_system(at, torch.ones(198, dtype=F64))
    assert system.matrix is not None
    assert system.sparse is not None


@pytest.mark.parametrize(
    ("objective", "constraint"), [("autodiff", "numpy"), ("scipy", "jacobian"), ("numpy", "autodiff"), ("numpy", "vjp")]
)
def test_a_mixture_has_products_alone(objective, constraint):
    system = kkt_system(lagrangian(OBJECTIVES[objective], CONSTRAINTS[constraint]), torch.ones_like(LAM))
    assert system.matrix is None
    assert system.sparse is None


# -- solutions --------------------------------------------------------------------------------------------------------------
@pytest.fixture
def never_dense(monkeypatch):
    """Fails where a sparse matrix is made dense."""

    def dense(self: Matrix) -> Tensor:
        assert not self.sparse
        return self.entries

    monkeypatch.setattr(Matrix, "dense", dense)


def poisson(N: int, *, own_objective: bool = True, own_constraint: bool = True):
    """Control of Poisson's equation with matrices: L = D x I + I x D, D = tridiag(1, -2, 1) / h^2."""
    instance, n = poisson_control(N=N), N * N
    D = sparse.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(N, N)) * ((N + 1) / 2) ** 2
    eye = sparse.eye_array(N)
    J = sparse.hstack([sparse.kron(D, eye) + sparse.kron(eye, D), sparse.eye_array(n)])
    e = 0.1 / np.sqrt(15) * (np.arange(1, N + 1) - (N + 1) / 2)
    d = np.append((np.sin(4 + e)[:, None] + np.cos(3 + e)).reshape(-1), np.zeros(n))
    H = sparse.diags_array(np.repeat([1.0, WEIGHT], n))

    def flat(x: dict) -> np.ndarray:
        return np.append(x["state"], x["source"])

    def tree(v: np.ndarray) -> dict:
        return {"state": v[:n].reshape(N, N), "source": v[n:].reshape(N, N)}

    f = Function.numpy(
        lambda x: 0.5 * (flat(x) - d) @ H @ (flat(x) - d), gradient=lambda x: tree(H @ (flat(x) - d)), hessian=lambda x: H
    )
    c = Function.numpy(lambda x: J @ flat(x), jacobian=lambda x: J, hessian=lambda x, w: sparse.csr_array((2 * n, 2 * n)))
    auto = instance.problem
    problem = ConstrainedProblem(
        objective=f if own_objective else auto.objective,
        equality=c if own_constraint else Function(auto.equality, jacobian=lambda x: J),
        x=auto.x,
    )
    return problem, instance.solution[0]


def assert_poisson(result, solution) -> None:
    assert result.success
    torch.testing.assert_close(result.x, solution.x, rtol=0, atol=1e-8)
    torch.testing.assert_close(result.multipliers.equality, solution.multipliers.equality, rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", [SketchedNewton(), SketchedNewton(linear_solver=Direct())], ids=["default", "direct"])
@pytest.mark.parametrize("size", [16, 32])
def test_poisson_control_with_sparse_matrices(size, solver, never_dense):
    """A quadratic program: one factorisation, no product but those that confirm the solution."""
    problem, solution = poisson(size)
    result = solve(problem, solver)
    assert_poisson(result, solution)
    assert result.steps == 1
    assert result.state.products <= 4
    assert (result.calls.hvps, result.calls.total().hessians) == (result.state.products, 2)


@pytest.mark.parametrize("own_objective", [False, True])
def test_poisson_control_with_a_sparse_jacobian_alone(own_objective, never_dense):
    """Second derivatives by autodiff: products, and MINRES by them."""
    problem, solution = poisson(12, own_objective=own_objective, own_constraint=False)
    assert_poisson(solve(problem, SketchedNewton(linear_solver=Minres())), solution)


def test_the_default_takes_a_mixture_too():
    problem, solution = poisson(16, own_objective=False, own_constraint=False)
    assert_poisson(solve(problem), solution)


def short_chain():
    """scipy's solution of the chain of twenty."""
    rows = {"type": "eq", "fun": c, "jac": lambda x: jacobian(x).toarray()}
    return minimize(f, chain_start(20).numpy(), jac=gradient, constraints=rows, method="SLSQP", options={"ftol": 1e-12})


def test_a_chain_of_two_thousand(never_dense):
    """x settles to 1 within twenty entries: scipy's solution of the chain of twenty is its beginning."""
    short = short_chain()
    problem = ConstrainedProblem(objective=CHAIN_F, equality=CHAIN_C, x=chain_start(2000))
    assert problem.check().ok
    result = solve(problem, SketchedNewton())
    assert result.success
    assert result.fun == pytest.approx(short.fun, rel=1e-9)
    np.testing.assert_allclose(result.x[:12], short.x[:12], atol=1e-5)
    assert result.calls.hvps <= 2 * result.steps


def test_trust_constr_gets_sparse_jacobians():
    """Among dense ones too: scipy refuses to mix."""
    problem = ConstrainedProblem(objective=CHAIN_F, equality=CHAIN_C, inequality=lambda x: x[:2] - 5, x=chain_start(20))
    result = solve(problem, TrustConstr(), tol=1e-6)
    assert result.success
    assert result.fun == pytest.approx(short_chain().fun, rel=1e-6)


# -- what is told apart -----------------------------------------------------------------------------------------------------
def test_an_explicit_hessian_is_a_second_derivative():
    numpy = {"gradient": gradient, "hessian": hessian}
    assert Feature.NO_HVP not in ConstrainedProblem(objective=Function.numpy(f, **numpy), x=AT).features
    assert Feature.NO_HVP in ConstrainedProblem(objective=Function.numpy(f, gradient=gradient), x=AT).features
    assert Feature.NO_HVP in ConstrainedProblem(objective=CHAIN_F, equality=Function.numpy(c, jacobian=jacobian), x=AT).features


def test_check_compares_matrices_with_differences():
    def problem(**changed):
        given = {"gradient": gradient, "hessian": hessian, "jacobian": jacobian, "bend": bend, **changed}
        own_f = Function.numpy(f, gradient=given["gradient"], hessian=given["hessian"], hvp=given.get("hvp"))
        return ConstrainedProblem(
            objective=own_f, equality=Function.numpy(c, jacobian=given["jacobian"], hessian=given["bend"]), x=AT
        )

    both = ("Lagrangian: Hessian", "Lagrangian: hessian=")
    assert problem().check().ok
    assert problem(hessian=lambda x: 1.01 * hessian(x)).check().bad == both
    assert problem(hessian=lambda x: sparse.triu(hessian(x))).check().bad == both
    assert problem(bend=lambda x, w: bend(x, -w)).check().bad == both
    assert problem(jacobian=lambda x: 1.01 * jacobian(x)).check().bad == ("equality: Jacobian", *both)
    assert problem(hvp=lambda x, v: hessian(x) @ v).check().ok
    assert problem(hvp=lambda x, v: hessian(x) @ v, hessian=lambda x: 2 * hessian(x)).check().bad == both[1:]


@pytest.mark.parametrize(
    ("objective", "constraint", "words"),
    [
        (
            Function(f, hessian=to_numpy(hessian, lambda A: A.tocsr()[:-1])),
            c,
            r"objective\.hessian: .* \(9, 9\), .* got \(8, 9\)",
        ),
        (Function(f, hessian=lambda x: x), c, r"objective\.hessian: .* \(9, 9\), .* got \(9,\)"),
        (Function(f, hessian=lambda x: None), c, r"objective\.hessian: .* \(9, 9\), .* got NoneType"),
        (f, Function(c, jacobian=to_numpy(jacobian, lambda A: A.T)), r"equality\.jacobian: .* \(7, 9\), .* got \(9, 7\)"),
        (f, Function(c, hessian=lambda x, w: torch.eye(7)), r"equality\.hessian: .* \(9, 9\), .* got \(7, 7\)"),
        (f, Function(c, hessian=to_numpy(bend, lambda A: A.tocsr()[:, :8])), r"equality\.hessian: .* \(9, 9\), .* got \(9, 8\)"),
    ],
)
def test_matrices_of_the_wrong_shape_are_refused_by_name(objective, constraint, words):
    with pytest.raises(ProblemError, match=words):
        lagrangian(objective, constraint).product(AT, LAM)


def test_an_unknown_second_derivative_is_not_taken_for_zero():
    """A torch function that computes by numpy: its value has no graph."""
    blind = Function(lambda x: torch.as_tensor(f(x.detach().numpy())), gradient=to_numpy(gradient, tensor))
    with pytest.raises(Unsuitable, match=r"objective: its value has no graph .* hessian="):
        lagrangian(blind, c)
    blind = Function(lambda x: torch.as_tensor(c(x.detach().numpy())), jacobian=to_numpy(jacobian))
    with pytest.raises(Unsuitable, match=r"equality: its value has no graph .* hessian="):
        lagrangian(f, blind)
    with pytest.raises(Unsuitable, match=r"objective, equality: second derivatives are missing"):
        lagrangian(Function.numpy(f, gradient=gradient), Function.numpy(c, jacobian=jacobian))
