"""One thread, of torch and of numpy's BLAS: small problems run many times faster than with several. And the mark `quick`."""

import os
import re
from pathlib import Path

import pytest

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy and scipy are imported
import torch

torch.set_num_threads(1)

# One case of a family of solvers: every check of conformance.py on each.
FAMILIES = (
    *("penalty-clipped", "implicit-clipped", "lv-hba-toy", "vpbgd-clipped", "gpbgd-dict-module", "maid-quadratic", "sgd-clipped"),
    *("single-clipped", "f2sa-clipped", "bo-rep-box", "stocbio-exact", "soba-box", "scalebio-exact"),
    *("newton-dict", "newton-sketch", "interior-box", "multipliers-box", "multipliers-sgd", "slsqp-box", "trust-constr"),
)
# File of tests -> which of its tests, by a pattern.
QUICK = {
    "test_floors.py": "",
    "test_public.py": r"exported_names|every_name|one_solve|star_import|examples\[(bilevel\.problem|constrained\.problem)\]",
    "test_docs.py": r"reference|links|restructured|pre_commit",
    "test_conformance.py": rf"\[({'|'.join(FAMILIES)})-\w+\]|test_names|test_every|test_quick",
    "constrained/core/test_options.py": "",
    "constrained/core/test_vec.py": "",
    "constrained/core/test_states.py": "",
    "constrained/core/test_checkpoint.py": "",
    "constrained/core/test_older_files.py": r"\[(penalty-clipped|newton-hs6|sgd-module-batches)\]",
    "constrained/sets/test_sets_projections.py": "",
    "constrained/linear/test_linear.py": "",
    "constrained/descent/test_newton_cg.py": "",
    "constrained/descent/test_descent.py": r"^(?!test_unbounded)",
    "bilevel/hypergradients/test_hypergradient.py": "",
    "bilevel/certificates/test_residuals.py": "",
    "bilevel/certificates/test_wrong_answers.py": r"\[(plain|float32|f constant|item|in place)-",
    "problems/test_zoo.py": r"\[(quadratic|pl-toy)\]",
}
HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    for item in items:
        pattern = QUICK.get(item.path.relative_to(HERE).as_posix()) if item.path.is_relative_to(HERE) else None
        if pattern is not None and re.search(pattern, item.name) and not {"slow", "gpu"} & {m.name for m in item.iter_markers()}:
            item.add_marker("quick")


def pytest_ignore_collect(collection_path, config):
    """`-m quick` reads no other file of tests."""
    if config.option.markexpr == "quick" and collection_path.suffix == ".py" and collection_path.name.startswith("test_"):
        return collection_path.relative_to(HERE).as_posix() not in QUICK or None
    return None
