"""The floors of the house, read from the sources: who may import whom, and what no module may do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("constrained", "bilevel", "problems")
SOURCES = {p: p.relative_to(ROOT).with_suffix("").parts for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))}
MODULES = {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in SOURCES.items()}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
LIBRARY = [name for name in MODULES if not name.startswith("problems")]

# Lowest first. A module belongs to the longest entry that it starts with, and imports from its own floor and below.
TABLE = """
constrained.core.deadline
constrained.core.errors constrained.core.version constrained.core.moved constrained.core.status constrained.core.upgrade \
    constrained.core.files
constrained.core.options constrained.core.arguments constrained.core.vec constrained.core.shared_state
constrained.core.states constrained.core.data constrained.core.processes
constrained.core.live constrained.core.sources constrained.core.stream constrained.core.digest
constrained.core.derivatives
constrained.core.variables constrained.core.problem
constrained.core.optimizers constrained.core.torch_optimizer constrained.core.solver
constrained.core.event constrained.core.result constrained.core.auto constrained.core.choice
constrained.core.checkpoint constrained.core.checkpoint_folder constrained.core.verdict constrained.core.accepted
constrained.core.running
constrained.core.run constrained.core.callbacks constrained.core
constrained.moved
constrained.sets
constrained.linear
constrained.oracle constrained.descent
constrained.interior
constrained.kkt constrained.progress constrained.newton constrained.augmented_objective constrained.polyhedron
constrained.peers
constrained.problem constrained.solvers
constrained.recommend constrained.as_scipy
constrained.minimize constrained.multistart constrained.many constrained.extend
constrained
bilevel.moved bilevel.oracle bilevel.mixture bilevel.blocks
bilevel.single_loop bilevel.lower
bilevel.hypergradients
bilevel.reformulations bilevel.certificates
bilevel.solvers
bilevel.advice.diagnosis
bilevel.problem bilevel.extend
bilevel.advice bilevel.lm
bilevel
problems.moved problems.instance problems.arguments
problems.report
problems.cleaning problems.control problems.coupled problems.cutest problems.discs problems.exponential problems.images \
    problems.libsvm problems.logistic problems.obstacle problems.pde problems.portfolio problems.quadratic problems.reweighting \
    problems.spring problems.texts problems.toy problems.traps problems.tuning
problems
problems.papers
problems.cli
problems.__main__
"""
FLOORS = {name: i for i, line in enumerate(TABLE.replace("\\\n", "").strip().splitlines()) for name in line.split()}
LAZY = {"rich", "cvxpy", "scipy", "matplotlib", "sklearn", "joblib", "tensorboard", "transformers", "optuna", "safetensors"}
LAZY |= {"peft", "datasets", "tokenizers"}


def floor(module: str) -> int:
    """Of the longest entry that the module is or lies in."""
    parts = module.split(".")
    return next(FLOORS[name] for i in range(len(parts), 0, -1) if (name := ".".join(parts[:i])) in FLOORS)


def imports(name: str, *, at_import: bool = False) -> Iterator[tuple[str, int]]:
    """Modules that a module imports, by full name, with the line; `at_import`: outside functions and `if TYPE_CHECKING`."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    pending: list[ast.AST] = [TREES[name]]
    while pending:
        node = pending.pop()
        if at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # `from package import module` imports the module
                inner = f"{base}.{alias.name}"
                yield (inner if inner in MODULES else base), node.lineno


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a chain of attributes, '' of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def where(name: str, line: int) -> str:
    return f"{MODULES[name].relative_to(ROOT)}:{line}"


def test_the_sources_were_found():
    assert {name for name in FLOORS if name not in MODULES} == set()
    assert len(MODULES) > 20


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_upwards(name):
    allowed = floor(name)
    for module, line in imports(name):
        if module.split(".")[0] in PACKAGES:
            assert floor(module) <= allowed, f"{where(name, line)} imports {module}"


def test_solver_files_do_not_import_one_another():
    for name in MODULES:
        if ".solvers." in name:
            for module, line in imports(name):
                assert ".solvers" not in module, f"{where(name, line)} imports {module}"


def test_bilevel_never_imports_problems():
    for name in LIBRARY:
        for module, line in imports(name):
            assert module.split(".")[0] != "problems", f"{where(name, line)} imports {module}"


def test_no_import_goes_in_a_circle():
    """Imports in functions and for types too."""
    graph = {name: {m for m, _ in imports(name) if m in MODULES and m != name} for name in MODULES}
    while True:
        leaves = {name for name, needs in graph.items() if not needs}
        if not leaves:
            break
        graph = {name: needs - leaves for name, needs in graph.items() if name not in leaves}
    assert not graph, f"in or behind a circle: {sorted(graph)}"


def room(name: str) -> str:
    return name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_underscores_stay_in_their_room(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom):
            private = [alias.name for alias in node.names if alias.name.startswith("_") and not alias.name.startswith("__")]
            for module, line in imports(name) if private else ():
                if line == node.lineno and module.split(".")[0] in PACKAGES:
                    assert room(module) == room(name), f"{where(name, line)} imports {private} from {module}"


def test_only_vec_uses_pytree():
    for name, tree in TREES.items():
        names = [m for m, _ in imports(name)] + [dotted(node) for node in ast.walk(tree)]
        names += [f"{n.module}.{a.name}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module for a in n.names]
        if any("torch.utils._pytree" in used for used in names):
            assert name == "constrained.core.vec", f"{name} uses torch.utils._pytree"


def test_only_derivatives_and_live_differentiate():
    whole = ("torch.autograd.grad", "torch.autograd.backward", "torch.autograd.functional", "torch.func", "functorch")
    for name in LIBRARY:
        if name in (
            "constrained.core.live",
            *(f"constrained.core.derivatives.{one}" for one in ("graph", "lanes", "objective", "tape")),
        ):
            continue
        for module, line in imports(name):
            assert not module.startswith(("torch.func", "torch.autograd", "functorch")), f"{where(name, line)} imports {module}"
        for node in ast.walk(TREES[name]):
            used = dotted(node)
            differentiates = used.startswith(whole) and used not in ("torch.func", "torch.func.functional_call")
            differentiates |= isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward"
            assert not differentiates, f"{where(name, getattr(node, 'lineno', 0))} differentiates: {used}"


@pytest.mark.parametrize("name", MODULES)
def test_optional_packages_are_imported_where_they_are_used(name):
    lazy = LAZY if name in LIBRARY else {"sklearn", "matplotlib", "rich"}
    for module, line in imports(name, at_import=True):
        assert module.split(".")[0] not in lazy, f"{where(name, line)} imports {module} when it is imported"


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_needs_torch_and_numpy_only(name):
    own = PACKAGES[:1] if name.startswith("constrained") else PACKAGES[:2]
    for module, line in imports(name, at_import=True):
        top = module.split(".")[0]
        assert top in {"torch", "numpy", *own} or top in sys.stdlib_module_names, f"{where(name, line)} imports {module}"


def test_files_are_short():
    files = [*MODULES.values(), *sorted((ROOT / "tests").rglob("*.py"))]
    long = {str(path.relative_to(ROOT)): count for path in files if (count := len(path.read_text().splitlines())) > 400}
    assert not long


GLOBAL = (
    "torch.set_",
    "torch.manual_seed",
    "torch.random.manual_seed",
    "torch.seed",
    "torch.use_deterministic_algorithms",
    "torch.autograd.set_",
    "torch.multiprocessing.set_",
    "warnings.filterwarnings",
    "warnings.simplefilter",
    "warnings.resetwarnings",
    "np.random.seed",
    "np.seterr",
    "np.set_printoptions",
    "random.seed",
    "logging.basicConfig",
)
MAY = {  # set them: the command line is a program with a process of its own; batches put back what they seed
    "problems.__main__": {"main", "_reproduce"},
    "constrained.core.shared_state": {"seed_generators"},
}


@pytest.mark.parametrize("name", MODULES)
def test_global_settings_are_left_alone(name):
    """Also inside functions, but for those of MAY."""
    may = MAY.get(name, ())
    tree = ast.Module([node for node in TREES[name].body if not (isinstance(node, ast.FunctionDef) and node.name in may)], [])
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            used = dotted(node.func).replace("numpy.", "np.")
            assert not used.startswith(GLOBAL), f"{where(name, node.lineno)} calls {used}"
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                used = dotted(target.value if isinstance(target, ast.Subscript) else target)
                assert not used.startswith(("torch.backends", "os.environ")), f"{where(name, node.lineno)} sets {used}"


PROBE = f"""
import importlib, sys, warnings
import numpy as np, torch
def look():
    flags = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    return *flags, list(warnings.filters), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), np.geterr()
torch.utils._pytree  # torch's own late imports are not ours
before = look()
for name in {[name for name in LIBRARY if not name.endswith("__main__")]!r}:
    importlib.import_module(name)
assert look() == before, "importing the library changed a global setting"
late = {sorted(LAZY | {"problems"})!r}
assert not set(late) & set(sys.modules), set(late) & set(sys.modules)
"""


def test_importing_the_library_changes_nothing_and_stays_light():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
