"""BilevelProblem: what it refuses and how it says so; modules, mini-batches and full batches."""

import numpy as np
import pytest
import torch
from torch import nn

from bilevel import (
    Affine,
    Auto,
    BilevelProblem,
    Box,
    Everywhere,
    Feature,
    FullBatch,
    Implicit,
    MiniBatches,
    Penalty,
    PenaltySGD,
    Point,
    Product,
    Simplex,
    hypergradient,
    iterate,
    solve,
)
from constrained.core.errors import BilevelError, NonFiniteStart, OptionError, ProblemError, Unsuitable

F64 = torch.float64


def vector(*entries: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=F64)


def upper(x, y):
    return ((y - 1) ** 2).sum() + (x**2).sum()


def lower(x, y):
    return ((y - x) ** 2).sum()


def problem(**changed):
    return BilevelProblem(**{"upper": upper, "lower": lower, "x": vector(0, 0), "y": vector(0, 0), **changed})


def refused(error, words, call):
    """`call` raises exactly this library exception, and its message holds every word, the argument's name first."""
    with pytest.raises(BilevelError) as caught:
        call()
    assert type(caught.value) is error, caught.value
    text = str(caught.value)
    assert text.startswith(words[0]), text
    assert all(word in text for word in words), text
    assert "\n" not in text


CALLABLES = ["upper", "lower", "lower_equality", "lower_inequality", "upper_equality", "upper_inequality", "lower_solution"]


@pytest.mark.parametrize("name", CALLABLES)
@pytest.mark.parametrize("value", [3, "a word", torch.zeros(2)])
def test_not_a_function(name, value):
    refused(ProblemError, [f"{name}: ", "expected a function", type(value).__name__], lambda: problem(**{name: value}))


@pytest.mark.parametrize("name", ["upper", "lower"])
def test_no_function(name):
    refused(ProblemError, [f"{name}: ", "expected a function", "NoneType"], lambda: problem(**{name: None}))


@pytest.mark.parametrize("name", ["X", "Y"])
@pytest.mark.parametrize("value", [3, None, "a word", (0, 1), Box])
def test_not_a_set(name, value):
    refused(ProblemError, [f"{name}: ", "expected a set"], lambda: problem(**{name: value}))


@pytest.mark.parametrize("name", ["X", "Y"])
@pytest.mark.parametrize(
    "value",
    [
        Box(torch.zeros(3), torch.ones(3)),
        Affine([[1.0, 1.0, 1.0]], [1.0]),
        Product({"w": Box(0, 1)}),
        Box(low={"w": 0.0}),
    ],
)
def test_set_that_does_not_fit(name, value):
    refused(ProblemError, [name, type(value).__name__, "got"], lambda: problem(**{name: value}))


def test_simplex_of_several_leaves_points_to_product():
    refused(ProblemError, ["Y: ", "Simplex", "Product"], lambda: problem(y={"a": vector(1), "b": vector(1)}, Y=Simplex()))


@pytest.mark.parametrize("name", ["upper_data", "lower_data"])
@pytest.mark.parametrize("value", [3, None, torch.zeros(3), MiniBatches], ids=["int", "None", "tensor", "class"])
def test_not_a_sampler(name, value):
    refused(ProblemError, [f"{name}: ", "expected a sampler"], lambda: problem(**{name: value}))


NO_VARIABLES = [
    None,
    "a word",
    3,
    True,
    [],
    {},
    {"a": None},
    torch.zeros(2, dtype=torch.int64),
    torch.zeros(2, dtype=torch.cfloat),
]


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize("value", NO_VARIABLES, ids=str)
def test_not_a_variable(name, value):
    refused(ProblemError, [name, "expected", "got"], lambda: problem(**{name: value}))


@pytest.mark.parametrize("name", ["x", "y"])
def test_module_without_trainable_parameters(name):
    refused(ProblemError, [name, "expected", "got"], lambda: problem(**{name: nn.Linear(2, 1).double().requires_grad_(False)}))


@pytest.mark.parametrize("name", ["x", "y"])
def test_mixed_dtypes(name):
    words = ["x, y: ", "expected one dtype", "torch.float32", "torch.float64"]
    refused(ProblemError, words, lambda: problem(**{name: torch.zeros(2)}))


def test_mixed_dtypes_inside_one_variable():
    mixed = {"a": torch.zeros(2), "b": vector(0)}
    refused(ProblemError, ["x, y: ", "expected one dtype", "torch.float32", "torch.float64"], lambda: problem(y=mixed))


def test_mixed_devices():
    refused(ProblemError, ["x, y: ", "device", "meta"], lambda: problem(x=torch.zeros(2, dtype=F64, device="meta")))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["x", "y"])
def test_variable_not_finite(name, bad):
    """The variable is named, not a function that is only its victim."""
    refused(NonFiniteStart, [f"{name}: ", "NaN or infinite"], lambda: solve(problem(**{name: vector(0, bad)})))


@pytest.mark.parametrize("name", ["upper", "lower"])
@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda x, y: (y * float("nan")).sum(), NonFiniteStart, ["value is nan"]),
        (lambda x, y: y.sum() + float("inf"), NonFiniteStart, ["value is inf"]),
        (lambda x, y: (y**2).sum().sqrt(), NonFiniteStart, ["gradient in y"]),
        (lambda x, y: (x**2).sum().sqrt() + (y**2).sum(), NonFiniteStart, ["gradient in x"]),
        (lambda x, y: y - x, ProblemError, ["expected a scalar", "(2,)"]),
        (lambda x, y: 1.0, ProblemError, ["expected a scalar", "float"]),
        (lambda x, y: None, ProblemError, ["expected a scalar", "None"]),
        (lambda x, y: torch.tensor(3), ProblemError, ["expected a scalar floating-point", "torch.int64"]),
        (lambda x, y: torch.tensor(3.0, dtype=F64), ProblemError, ["expected a function of x or y", "neither"]),
        (lambda x, y: (x.detach() ** 2 + y.detach()).sum(), ProblemError, ["expected a function of x or y", "neither"]),
    ],
    ids=["nan", "inf", "nan-grad-y", "nan-grad-x", "vector", "float", "None", "int", "constant", "detached"],
)
def test_function_that_is_no_objective(name, function, error, words):
    """Refused by solve, by iterate at the call, and by hypergradient, with the function's name."""
    bad = problem(**{name: function})
    for call in (lambda: solve(bad), lambda: iterate(bad), lambda: hypergradient(bad, vector(0, 0), vector(0, 0))):
        refused(error, [f"{name}: ", *words], call)


@pytest.mark.parametrize("name", ["lower_equality", "lower_inequality", "upper_equality", "upper_inequality"])
@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda x, y: y * float("nan"), NonFiniteStart, ["NaN or infinite"]),
        (lambda x, y: y[None] - x[:, None], ProblemError, ["1-D", "(2, 2)"]),
        (lambda x, y: None, ProblemError, ["1-D", "None"]),
    ],
)
def test_function_that_is_no_constraint(name, function, error, words):
    bad = problem(**{name: function})
    refused(error, [f"{name}: ", *words], lambda: bad.begin(bad.oracle(), None))


@pytest.mark.parametrize("name", ["lower_equality", "lower_inequality"])
@pytest.mark.parametrize("solver", [Penalty(), Implicit()])
def test_coupled_constraints_are_refused_with_the_name_of_a_solver(name, solver):
    constrained = problem(**{name: lambda x, y: y})
    words = [f"solver: {type(solver).__name__}", f"{name} constraints", "LVHBA does"]
    refused(Unsuitable, words, lambda: solve(constrained, solver))


@pytest.mark.parametrize("name", ["upper_equality", "upper_inequality"])
def test_constraints_without_a_solver(name):
    constrained = problem(**{name: lambda x, y: y})
    assert Feature[name.upper()] in constrained.features
    refused(Unsuitable, ["solve", f"{name} constraints"], lambda: solve(constrained))
    refused(Unsuitable, ["solver: Penalty", f"{name} constraints", "no solver"], lambda: solve(constrained, Penalty()))


@pytest.mark.parametrize(
    ("point", "error", "words"),
    [
        (3, OptionError, ["start: ", "Point", "int"]),
        (Point(vector(0, 0, 0)), ProblemError, ["x: ", "[2]", "[3]"]),
        (Point(None, vector(0, 0, 0)), ProblemError, ["y: ", "[2]", "[3]"]),
        (Point(torch.zeros(2)), ProblemError, ["x: ", "torch.float64", "torch.float32"]),
        (Point({"a": vector(0, 0)}), ProblemError, ["x: ", "expected", "['a']"]),
        (Point(vector(0, float("nan"))), NonFiniteStart, ["x: "]),
        (Point(None, vector(0, float("inf"))), NonFiniteStart, ["y: "]),
        (Point("a word"), ProblemError, ["x: ", "a word"]),
    ],
)
def test_start_that_does_not_fit(point, error, words):
    refused(error, words, lambda: solve(problem(), start=point))


def test_batch_norm_in_train_mode():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    words = ["y: ", "1 is BatchNorm in train mode", "eval"]
    refused(ProblemError, words, lambda: BilevelProblem(upper=upper, lower=lower, x=torch.zeros(2), y=net))
    BilevelProblem(upper=upper, lower=lower, x=torch.zeros(2), y=net.eval())


def test_unsuitable_names_one_that_fits():
    sampled = problem(lower=lambda x, y, b: lower(x, y) + 0 * b.sum(), lower_data=MiniBatches(torch.zeros(5, 1), 2))
    refused(Unsuitable, ["solver: Penalty", "mini-batches", "PenaltySGD", "full_batch"], lambda: solve(sampled, Penalty()))
    refused(OptionError, ["max_steps: ", "PenaltySGD", "None"], lambda: solve(sampled))
    refused(Unsuitable, ["hypergradient: ", "mini-batches"], lambda: hypergradient(sampled, vector(0, 0)))
    coupled = problem(lower_inequality=lambda x, y: x.sum() + y.sum())
    refused(Unsuitable, ["hypergradient: ", "lower_inequality"], lambda: hypergradient(coupled, vector(0, 0)))


def test_hypergradient_refuses_wrong_arguments():
    refused(ProblemError, ["x: ", "[2]", "[3]"], lambda: hypergradient(problem(), vector(0, 0, 0)))
    refused(ProblemError, ["y: ", "[2]", "[3]"], lambda: hypergradient(problem(), vector(0, 0), vector(0, 0, 0)))
    refused(OptionError, ["tol", "'a word'"], lambda: hypergradient(problem(), vector(0, 0), tol="a word"))


def test_refusal_leaves_the_problem_and_random_state_alone():
    before, x = torch.random.get_rng_state(), vector(0, 0)
    with pytest.raises(ProblemError):
        solve(problem(x=x, upper=lambda x, y: y - x))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(x, vector(0, 0))
    assert not x.requires_grad


def test_features_and_full_batch():
    data = torch.arange(6.0, dtype=F64)
    sampled = problem(lower=lambda x, y, b: lower(x, y) * b.mean(), lower_data=MiniBatches(data, 2), X=Box(0, 1), Y=Everywhere())
    assert sampled.features == Feature.LOWER | Feature.SAMPLES | Feature.X_SET
    whole = sampled.full_batch()
    assert whole.features == Feature.LOWER | Feature.X_SET
    assert isinstance(whole.lower_data, FullBatch)
    oracle = whole.oracle()
    assert float(oracle.g.value((oracle.variables["x"], oracle.variables["y"]))) == 0.0
    point = Point(vector(0, 1), vector(2, 3))
    expected = 2 * np.array([2.0, 2.0]) * 2.5  # g_y at the mean of 0 .. 5
    assert sampled.residuals(point)["lower"] == pytest.approx(np.linalg.norm(expected), abs=1e-12)
    assert whole.residuals(point) == sampled.residuals(point)


def test_solver_of_mini_batches_by_default():
    data = torch.arange(6.0, dtype=F64)
    sampled = problem(lower=lambda x, y, b: lower(x, y) + 0 * b.mean(), lower_data=MiniBatches(data, 2))
    assert isinstance(solve(sampled, max_steps=3).solver, PenaltySGD)
    assert isinstance(solve(sampled.full_batch(), max_steps=3).solver, Auto)


# -- modules ----------------------------------------------------------------------------------------------------------------
class Tied(nn.Module):
    """y'(w (w' z)), w used twice under two names, and a frozen shift."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight
        self.shift = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, z):
        return self.second(self.first(z)) + self.shift


def tied_problem():
    torch.manual_seed(1)
    net, z = Tied().double(), torch.randn(6, 2, dtype=F64)

    def low(x, net):
        return ((net(z) - x) ** 2).mean() + 0.1 * (net.first.weight**2).sum()

    return net, z, BilevelProblem(upper=lambda x, net: (net(z) ** 2).mean() + (x**2).sum(), lower=low, x=vector(1, 2), y=net)


def test_tied_and_frozen_parameters():
    """A tied weight is one leaf with the gradient of both uses; a frozen parameter is no variable and stays."""
    net, z, one = tied_problem()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    oracle = one.oracle()
    assert oracle.variables["y"].paths() == ["['first.weight']"]
    w, x = torch.randn(2, 2, dtype=F64), vector(0.3, -1)
    r = z @ w.T @ w.T + 1 - x
    value = float(oracle.g.value((oracle.variables["x"].like([x]), oracle.variables["y"].like([w]))))
    assert value == pytest.approx(float((r**2).mean() + 0.1 * (w**2).sum()), rel=1e-14)
    assert one.check().ok, str(one.check())
    result = solve(one, max_steps=3)
    assert set(result.y) == {"first.weight"}
    twin = result.module()
    assert torch.equal(twin.first.weight, result.y["first.weight"])
    assert twin.second.weight is twin.first.weight
    assert torch.equal(twin.shift, before["shift"])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.first.weight.requires_grad
    assert net.first.weight.grad is None


def test_modules_for_both_variables_equal_tensors():
    """Ridge regression: a Linear as y and a module as x give the iterates of plain tensors."""
    torch.manual_seed(2)
    net, rate = nn.Linear(3, 1, bias=False).double(), nn.ParameterDict({"log": nn.Parameter(vector(0.0))})
    A, b, C, d = (torch.randn(*shape, dtype=F64) for shape in ((8, 3), (8, 1), (5, 3), (5, 1)))
    modules = BilevelProblem(
        upper=lambda x, y: ((y(C) - d) ** 2).mean(),
        lower=lambda x, y: ((y(A) - b) ** 2).mean() + torch.exp(x["log"]).sum() * (y.weight**2).sum(),
        x=rate,
        y=net,
    )
    plain = BilevelProblem(
        upper=lambda x, y: ((C @ y.T - d) ** 2).mean(),
        lower=lambda x, y: ((A @ y.T - b) ** 2).mean() + torch.exp(x).sum() * (y**2).sum(),
        x=vector(0.0),
        y=net.weight.detach().clone(),
    )
    one, other = solve(modules), solve(plain)
    assert one.success
    assert torch.equal(one.x["log"], other.x)
    assert torch.equal(one.y["weight"], other.y)
    w = torch.linalg.solve(A.T @ A / 8 + torch.exp(one.x["log"]) * torch.eye(3, dtype=F64), A.T @ b / 8).numpy()
    assert one.y["weight"].numpy().ravel() == pytest.approx(w.ravel(), abs=1e-6)
    assert one.module()(C).detach().numpy() == pytest.approx(C.numpy() @ w, abs=1e-5)


def test_dropout_is_one_mask_a_draw():
    """In training with mini-batches: the same draw twice gives the same bits, another draw another mask; no global state."""
    net = nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.5), nn.Linear(30, 1)).double()
    data = torch.ones(6, 4, dtype=F64)
    one = BilevelProblem(
        upper=lambda x, y, b: (y(b) ** 2).mean() + (x**2).sum(),
        lower=lambda x, y, b: ((y(b) - x.sum()) ** 2).mean(),
        x=vector(1),
        y=net,
        upper_data=MiniBatches(data, 2),
        lower_data=MiniBatches(data, 2),
    )
    before = torch.random.get_rng_state()
    oracle = one.oracle(seed=4)
    at = (oracle.variables["x"], oracle.variables["y"])
    first, again, other = (oracle.g.gradient(at, oracle.g.draw(n), (0, 1)) for n in (0, 0, 1))
    assert float(first[0]) == float(again[0]) != float(other[0])
    assert all(torch.equal(a, b) for one, two in zip(first[1], again[1]) for a, b in zip(one.leaves, two.leaves))
    assert float(one.oracle(seed=5).g.value(at, one.oracle(seed=5).g.draw(0))) != float(first[0])
    assert float(oracle.f.value(at, oracle.f.draw(0))) != pytest.approx(float(first[0]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dict_variables_equal_flat_ones():
    """Entries of a dict are the parts of one vector: same steps, same answer to rounding."""
    H = torch.diag(vector(1, 2, 5, 3))

    def low(x, y):
        return 0.5 * (y - x) @ H @ (y - x) + 0.1 * torch.cosh(y).sum()

    def up(x, y):
        return ((y - vector(1, 2, 3, 4)) ** 2).sum() + 0.1 * (x**2).sum()

    def join(tree):
        return torch.cat([tree["b"].reshape(-1), tree["a"].reshape(-1)])

    start = {"b": torch.zeros(1, 2, dtype=F64), "a": vector(0, 0)}
    flat = solve(BilevelProblem(upper=up, lower=low, x=torch.zeros(4, dtype=F64), y=torch.zeros(4, dtype=F64)))
    tree = solve(
        BilevelProblem(upper=lambda x, y: up(join(x), join(y)), lower=lambda x, y: low(join(x), join(y)), x=start, y={**start})
    )
    assert flat.success
    assert tree.success
    assert list(tree.x) == ["b", "a"]
    assert tree.x["b"].shape == (1, 2)
    assert join(tree.x).numpy() == pytest.approx(flat.x.numpy(), abs=1e-6)
