"""Derivatives that users bring along, and constraints."""

import doctest
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from derivative_cases import DATA, F64, NX, NY, A, B, M, X, Y, c, close, d, numeric, objective, quadratic, randn
from scipy import sparse
from torch import Tensor

from constrained.core.data import MiniBatches
from constrained.core.derivatives import function, graph
from constrained.core.derivatives import objective as objectives
from constrained.core.derivatives.constraint import Constraint
from constrained.core.derivatives.counts import Calls, Count
from constrained.core.derivatives.function import Function
from constrained.core.derivatives.leaves import shaped
from constrained.core.derivatives.matrix import Matrix, matrix
from constrained.core.errors import ProblemError, Unsuitable
from constrained.core.vec import Vec


# -- derivatives of the user ------------------------------------------------------------------------------------------------
def own(**only: object) -> tuple[Function, SimpleNamespace]:
    """The quadratic with derivatives that note their calls."""
    seen = SimpleNamespace(gradient=0, hvp=0, jvp=0)

    def note(name, function):
        def call(*args):
            setattr(seen, name, getattr(seen, name) + 1)
            return function(*args)

        return call

    every = {
        "gradient": note("gradient", lambda x, y: (B @ y + d, A @ y + B.T @ x + c)),
        "hvp": note("hvp", lambda x, y, v: A @ v),
        "jvp": note("jvp", lambda x, y, v: B @ v),
    }
    return Function(quadratic, **{name: every[name] for name in only}), seen


ALL = {"gradient": 1, "hvp": 1, "jvp": 1}


def subsets():
    return [{n: 1 for i, n in enumerate(ALL) if k >> i & 1} for k in range(8)]


@pytest.mark.parametrize("only", subsets(), ids=lambda only: " ".join(only) or "none")
def test_own_derivatives_are_used_and_the_rest_is_autodiff(only):
    function, seen = own(**only)
    g, args = objective(function), [Vec.of(X), Vec.of(Y)]
    u, v, vs = randn(NX, seed=15), randn(NY, seed=16), randn(M, NY, seed=17)
    _, (gx, gy) = g.gradient(args, wrt=(0, 1))
    line = g.linearize(args)
    for grads in ((gx, gy), line.grads):
        close(grads[0].tree(), B @ Y + d)
        close(grads[1].tree(), A @ Y + B.T @ X + c)
    close(line.product(Vec.of(v), 1, 1).tree(), A @ v)
    close(line.product(Vec.of(v), 0, 1).tree(), B @ v)
    close(line.products(Vec.of(vs), 1, 1).tree(), vs @ A)
    close(line.products(Vec.of(vs), 0, 1).tree(), vs @ B.T)
    assert g.second_order
    assert (g.calls.gradients, g.calls.hvps, g.calls.jvps) == (2, 1 + M, 1 + M)
    assert seen.gradient >= only.get("gradient", 0)
    assert seen.hvp == (1 + M if "hvp" in only else 0)
    assert seen.jvp == (1 + M if "jvp" in only else 0)
    # These two have no place in Function: what is missing is autodiff.
    close(line.product(Vec.of(u), 1, 0).tree(), B.T @ u)
    close(line.product(Vec.of(u), 0, 0).tree(), torch.zeros(NX, dtype=F64))


def test_own_derivatives_of_one_variable():
    function = Function(lambda y: 0.5 * y @ A @ y, gradient=lambda y: A @ y, hvp=lambda y, v: A @ v)
    g = objective(function)
    line = g.linearize([Vec.of(Y)])
    close(g.gradient([Vec.of(Y)])[1][0].tree(), A @ Y)
    close(line.product(Vec.of(X[:1].repeat(NY)), 0, 0).tree(), A @ X[:1].repeat(NY))
    assert float(function(Y)) == pytest.approx(float(0.5 * Y @ A @ Y))


@pytest.mark.parametrize("n", [30, 70])
def test_stacks_of_products_with_a_large_matrix(n):
    """Logistic regression with a penalty a feature: g_yy = A'DA + diag(e^x), g_xy = diag(e^x y), below and above BATCHED."""
    assert 30 <= graph.BATCHED < 70
    rows, labels, y, x = randn(90, n, seed=40), randn(90, seed=41).sign(), 0.1 * randn(n, seed=42), 0.1 * randn(n, seed=43)

    def g(x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-labels * (rows @ y)).sum() + 0.5 * (x.exp() * y**2).sum()

    s = torch.sigmoid(rows @ y)
    H = rows.T @ ((s * (1 - s))[:, None] * rows) + torch.diag(x.exp())
    line, vs = objective(g).linearize([Vec.of(x), Vec.of(y)]), randn(6, n, seed=44)
    close(line.products(Vec.of(vs), 1, 1).tree(), vs @ H, 1e-12 * float(H.norm()))
    close(line.products(Vec.of(vs), 0, 1).tree(), vs * x.exp() * y, 1e-12)
    for v, found in zip(vs, line.products(Vec.of(vs), 1, 1).tree()):
        close(line.product(Vec.of(v), 1, 1).tree(), found, 1e-12 * float(H.norm()))


def test_own_derivatives_of_trees_and_batches():
    def value(y, batch):
        return (batch @ y["w"] + y["b"]).sum()

    function = Function(value, gradient=lambda y, batch: {"w": batch.sum(0), "b": torch.tensor(float(len(batch)), dtype=F64)})
    g = objective(function, sampler=MiniBatches(DATA, 4))
    y = Vec.of({"w": Y, "b": torch.tensor(0.5, dtype=F64)})
    _, (mine,) = g.gradient([y], g.draw(2))
    _, (auto,) = objective(value, sampler=MiniBatches(DATA, 4)).gradient([y], g.draw(2))
    close(mine.ravel(), auto.ravel())
    assert g.calls.rows == 2


def test_own_derivatives_of_the_wrong_shape_are_refused():
    args = [Vec.of(X), Vec.of(Y)]
    swapped = Function(quadratic, gradient=lambda x, y: (A @ y, B @ y))
    with pytest.raises(ProblemError, match=r"g\.gradient.*\(3,\).*\(4,\)"):
        objective(swapped).gradient(args, wrt=(0, 1))
    lonely = Function(quadratic, gradient=lambda x, y: A @ y)
    with pytest.raises(ProblemError, match=r"g\.gradient: expected 2"):
        objective(lonely).gradient(args)
    flat = Function(quadratic, gradient=own(**ALL)[0].gradient, hvp=lambda x, y, v: A, jvp=lambda x, y, v: B @ v)
    with pytest.raises(ProblemError, match=r"\(4,\).*\(4, 4\)"):
        objective(flat).linearize(args).product(args[1], 1, 1)


def test_own_derivatives_of_a_dict_are_matched_by_key():
    # JAX gives dicts back with sorted keys.
    y = Vec.of({"w": randn(2, seed=21), "b": randn(2, seed=22)})
    w, b = y.tree()["w"], y.tree()["b"]

    def value(y):
        return (y["w"] ** 2).sum() + 3 * y["b"].sum()

    function = Function(value, gradient=lambda y: {"b": 3 + 0 * b, "w": 2 * w}, hvp=lambda y, v: {"b": 0 * b, "w": 2 * v["w"]})
    g = objective(function)
    close(g.gradient([y])[1][0].ravel(), torch.cat([2 * w, 3 + 0 * b]))
    close(g.linearize([y]).product(y, 0, 0).ravel(), torch.cat([2 * w, 0 * b]))
    eye, zero = torch.eye(2, dtype=F64), torch.zeros(2, 2, dtype=F64)
    for own in ({"jacobian": lambda y: {"b": zero, "w": eye}}, {"vjp": lambda y, u: {"b": 0 * u, "w": u}}):
        (back,) = Constraint("c", Function(lambda y: y["w"], **own), Calls()).vjp([y], b)
        close(back.ravel(), torch.cat([b, 0 * b]))


def test_own_derivatives_of_another_structure_are_refused():
    y = Vec.of({"w": randn(2, seed=21), "b": randn(2, seed=22)})
    function = Function(lambda y: y["w"].sum(), gradient=lambda y: {"w": 1 + 0 * y["w"], "c": 0 * y["b"]})
    with pytest.raises(ProblemError, match=r"g\.gradient"):
        objective(function).gradient([y])


def test_functions_from_numpy():
    a, b, cc, dd = (t.numpy() for t in (A, B, c, d))

    def checked(function):
        def call(*arrays):
            assert all(isinstance(array, np.ndarray) for array in arrays)
            return function(*arrays)

        return call

    value = checked(lambda x, y: 0.5 * y @ a @ y + x @ b @ y + cc @ y + dd @ x)
    grad = checked(lambda x, y: (b @ y + dd, a @ y + b.T @ x + cc))
    first = objective(Function.numpy(value, gradient=grad))
    args = [Vec.of(X), Vec.of(Y)]
    found, (gx, gy) = first.gradient(args, wrt=(0, 1))
    close(found, quadratic(X, Y))
    close(gx.tree(), B @ Y + d)
    close(gy.tree(), A @ Y + B.T @ X + c)
    assert not first.second_order
    with pytest.raises(Unsuitable, match="g: no second derivatives"):
        first.linearize(args)

    second = objective(
        Function.numpy(value, gradient=grad, hvp=checked(lambda x, y, v: a @ v), jvp=checked(lambda x, y, v: b @ v))
    )
    assert second.second_order
    line = second.linearize(args)
    close(line.product(args[1], 1, 1).tree(), A @ Y)
    close(line.product(args[1], 0, 1).tree(), B @ Y)
    close(line.products(Vec.of(randn(M, NY)), 1, 1).tree(), randn(M, NY) @ A)
    with pytest.raises(Unsuitable, match="hvp=, jvp="):
        line.product(args[0], 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_functions_from_numpy_keep_trees_dtypes_and_batches(dtype):
    function = Function.numpy(
        lambda y, batch: float((batch @ y["w"]).sum()), gradient=lambda y, batch: {"w": batch.sum(0).astype(np.float64)}
    )
    g = objective(function, sampler=MiniBatches(DATA.to(dtype), 4))
    y = Vec.of({"w": Y.to(dtype)})
    value, (found,) = g.gradient([y], g.draw(0))
    batch = DATA[MiniBatches(DATA, 4).indices(0, 0, 0)]
    assert found.dtype == dtype
    torch.testing.assert_close(found.tree()["w"], batch.sum(0).to(dtype))
    assert float(value) == pytest.approx(float((batch @ Y).sum()), rel=1e-5)


def test_numpy_without_a_derivative_is_refused():
    with pytest.raises(ProblemError, match="gradient="):
        Function.numpy(lambda y: 0.0)


def test_numpy_functions_work_on_variables_that_require_grad_and_under_no_grad():
    g = objective(Function.numpy(lambda y: float(y @ y), gradient=lambda y: 2 * y))
    with torch.no_grad():
        close(g.gradient([Vec.of(Y)])[1][0].tree(), 2 * Y)


# -- constraints ------------------------------------------------------------------------------------------------------------
def curve(x: Tensor, y: dict) -> Tensor:
    return torch.stack([x @ x - y["w"].sum(), (y["w"] * y["w"]).sum() * x[0], y["b"] ** 3])


CY = Vec.of({"w": randn(2, 2, seed=18), "b": randn(seed=19)})
W = randn(3, seed=20)


def jacobian(x: Tensor, y: dict) -> tuple:
    zero, one = torch.zeros(NX, dtype=F64), torch.eye(NX, dtype=F64)[0]
    return (
        torch.stack([2 * x, (y["w"] ** 2).sum() * one, zero]),
        {
            "w": torch.stack([-torch.ones(2, 2, dtype=F64), 2 * x[0] * y["w"], torch.zeros(2, 2, dtype=F64)]),
            "b": torch.stack([torch.zeros((), dtype=F64)] * 2 + [3 * y["b"] ** 2]),
        },
    )


def own_vjp(x: Tensor, y: dict, w: Tensor) -> tuple:
    J, K = jacobian(x, y)
    return J.T @ w, {key: torch.tensordot(w, part, 1) for key, part in K.items()}


def in_numpy(function):
    def call(*trees):
        as_torch = [{k: torch.tensor(v) for k, v in t.items()} if isinstance(t, dict) else torch.tensor(t) for t in trees]
        out = function(*as_torch)
        parts = [
            {k: v.numpy() for k, v in p.items()} if isinstance(p, dict) else p.numpy()
            for p in (out if isinstance(out, tuple) else [out])
        ]
        return tuple(parts) if isinstance(out, tuple) else parts[0]

    return call


@pytest.mark.parametrize(
    "call",
    [
        curve,
        Function(curve, vjp=own_vjp),
        Function(curve, jacobian=jacobian),
        Function.numpy(in_numpy(curve), vjp=in_numpy(own_vjp)),
        Function.numpy(in_numpy(curve), jacobian=in_numpy(jacobian)),
    ],
    ids=["autodiff", "vjp", "jacobian", "numpy vjp", "numpy jacobian"],
)
def test_constraints(call):
    con = Constraint("c", call, Calls())
    args = [Vec.of(X), CY]
    close(con.value(args), curve(X, CY.tree()))
    cx, cy = con.vjp(args, W)
    close(cx.tree(), numeric(lambda x: con.value([x, CY]), args[0]) @ W, 1e-8)
    close(cy.ravel(), numeric(lambda y: con.value([args[0], y]), CY) @ W, 1e-8)
    assert cy.spec == CY.spec
    assert con.calls.vjps == 1
    rows = con.rows(args, torch.stack([W, -2 * W]))
    for found, one in zip(rows, (cx, cy), strict=True):
        close(found, torch.stack([one.ravel(), -2 * one.ravel()]))
    assert con.calls.vjps == 3


def test_constraints_of_one_variable_and_scalars():
    con = Constraint("c", lambda x: x.sum() - 1, Calls())
    assert con.value([Vec.of(X)]).shape == (1,)
    close(con.vjp([Vec.of(X)], torch.tensor([2.0], dtype=F64))[0].tree(), torch.full((NX,), 2.0, dtype=F64), 0)
    own = Constraint("c", Function(lambda x: x**2, vjp=lambda x, w: 2 * x * w), Calls())
    close(own.vjp([Vec.of(X)], X)[0].tree(), 2 * X * X)
    assert con.calls.of("c") == Count(values=2, vjps=1)


@pytest.mark.parametrize("wrong", [torch.ones(NX, dtype=F64), torch.ones(2, NX - 1, dtype=F64), torch.ones(2, 1, dtype=F64)])
def test_a_jacobian_of_the_wrong_shape_is_refused(wrong):
    con = Constraint("c", Function(lambda x: x[: 1 if wrong.ndim == 1 else 2], jacobian=lambda x: wrong), Calls())
    with pytest.raises(ProblemError, match=r"c\.jacobian"):
        con.vjp([Vec.of(X)], torch.ones(1 if wrong.ndim == 1 else 2, dtype=F64))


def test_a_constraint_that_ignores_an_argument_has_derivative_zero():
    con = Constraint("c", lambda x, y: x[:2], Calls())
    _, cy = con.vjp([Vec.of(X), CY], torch.ones(2, dtype=F64))
    assert torch.equal(cy.ravel(), torch.zeros(5, dtype=F64))
    fixed = Constraint("c", lambda x: torch.ones(2, dtype=F64), Calls())
    assert torch.equal(fixed.vjp([Vec.of(X)], torch.ones(2, dtype=F64))[0].tree(), torch.zeros(NX, dtype=F64))


def test_constraints_accumulate_values_in_float64_and_keep_the_variables_dtype():
    x = Vec.of(X.float())
    con = Constraint("c", lambda x: x**2, Calls())
    assert con.value([x]).dtype == F64
    assert con.vjp([x], torch.ones(NX, dtype=F64))[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "words"), [(lambda x: x.reshape(1, -1), "(1, 3)"), (lambda x: 1.0, "float"), (lambda x: x > 0, "(3,)")]
)
def test_a_constraint_that_is_not_a_vector_is_refused(call, words):
    with pytest.raises(ProblemError) as caught:
        Constraint("c", call, Calls()).value([Vec.of(X)])
    assert "c: expected a scalar or 1-D floating-point tensor" in str(caught.value)
    assert words in str(caught.value)


def test_sparse_jacobians_of_two_arguments():
    """Columns in the order of `Vec.ravel`, structures as they are."""
    given = [np.concatenate([part.reshape(3, -1) for part in parts], 1) for parts in jacobian_parts()]
    for form in (sparse.csr_array, sparse.coo_array, lambda A: torch.as_tensor(A).to_sparse_csr()):
        con = Constraint("c", Function(curve, jacobian=lambda x, y, form=form: tuple(form(part) for part in given)), Calls())
        cx, cy = con.vjp([Vec.of(X), CY], W)
        true = own_vjp(X, CY.tree(), W)
        close(cx.tree(), true[0])
        close(cy.ravel(), Vec.of(true[1]).ravel())
        assert cy.spec == CY.spec
    con = Constraint("c", Function(curve, jacobian=lambda x, y: (sparse.csr_array(given[0]), sparse.eye_array(3))), Calls())
    with pytest.raises(ProblemError, match=r"c\.jacobian: expected a matrix of shape \(3, 5\), dense or sparse, got \(3, 3\)"):
        con.vjp([Vec.of(X), CY], W)


def jacobian_parts() -> list[list[np.ndarray]]:
    J, K = jacobian(X, CY.tree())
    return [[J.numpy()], [K["w"].numpy(), K["b"].numpy()]]


# -- matrices ---------------------------------------------------------------------------------------------------------------
FORMS = {
    "dense": lambda A: torch.as_tensor(A),
    "array": lambda A: A,
    "csr": sparse.csr_array,
    "csc": sparse.csc_matrix,
    "coo": sparse.coo_array,
    "torch csr": lambda A: torch.as_tensor(A).to_sparse_csr(),
    "torch coo": lambda A: torch.as_tensor(A).to_sparse(),
    "torch csc": lambda A: torch.as_tensor(A).to_sparse_csc(),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("form", FORMS)
def test_products_with_a_matrix_of_any_form(form, dtype):
    entries = randn(3, 5, seed=30) * (randn(3, 5, seed=31) > 0)
    A = matrix(FORMS[form](entries.numpy()), (3, 5), torch.zeros((), dtype=dtype), "A")
    true, tol = entries.to(dtype), 1e-6 if dtype == torch.float32 else 1e-14
    u, w, U, W = (randn(*shape, seed=32).to(dtype) for shape in ((5,), (3,), (4, 5), (4, 3)))
    for found, wanted in ((A @ u, true @ u), (A.T @ w, true.T @ w), (A @ U, U @ true.T), (A.T @ W, W @ true), (A.dense(), true)):
        assert found.dtype == dtype
        close(found, wanted, tol)
    assert A.sparse is (form not in ("dense", "array"))
    assert A.stored == (int((entries != 0).sum()) if A.sparse else 15)
    np.testing.assert_allclose(A.scipy().toarray(), entries, atol=tol)


def test_matrices_without_rows_and_with_entries_given_twice():
    empty = matrix(sparse.csr_array((0, 4)), (0, 4), Y, "A")
    assert (empty @ Y).shape == (0,)
    assert torch.equal(empty.T @ Y[:0], 0 * Y)
    twice = sparse.coo_array((np.ones(3), ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    assert torch.equal(matrix(twice, (2, 2), Y, "A").dense(), torch.tensor([[0.0, 2], [1, 0]], dtype=F64))


def test_dense_matrices_do_not_share_the_graph_of_the_user():
    assert not matrix(torch.ones(2, 2, requires_grad=True), (2, 2), Y, "A").entries.requires_grad
    assert not Matrix(torch.ones(2, 2)).sparse


@pytest.mark.parametrize(
    ("wrong", "words"), [(np.eye(3), "got (3, 3)"), ([[1.0]], "got list"), (sparse.eye_array(2), "got (2, 2)")]
)
def test_what_is_no_such_matrix(wrong, words):
    with pytest.raises(ProblemError) as caught:
        matrix(wrong, (2, 3), Y, "f.hessian")
    assert "f.hessian: expected a matrix of shape (2, 3), dense or sparse" in str(caught.value)
    assert words in str(caught.value)


# -- helpers ----------------------------------------------------------------------------------------------------------------
def test_shaped_names_what_is_wrong():
    with pytest.raises(ProblemError, match=r"h: expected shapes \[\(3,\)\], got \[\(4,\)\]"):
        shaped(Y, Vec.of(X), "h")
    assert shaped(X.float(), Vec.of(X), "h").dtype == F64


def test_docstring_examples():
    assert doctest.testmod(objectives).failed == doctest.testmod(function).failed == 0
