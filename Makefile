# make demo    install into .venv and run the main job: data hyper-cleaning on digits
# make test    install into .venv and run the tests          make check   lint, format, types
# make quick   the tests of the core promises, in a minute
# make crosscheck   the CUTEst problems against sif2jax, in an environment of its own
# make peers        our hypergradients beside hypertorch, torchopt, jaxopt, BOAT and Betty, in an environment of its own
# make constrained-peers   our constrained solvers beside SLSQP, trust-constr, Ipopt, Pounce and Uno, there too; SETS="sparse dense"
# make fuzz    10,000 random problems, options and misbehaving functions, anew each time; FUZZ=500 for fewer
# make slow    the longer tests, before a release           make docs    the documentation, into docs/_build/html
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo quick test check slow fuzz docs crosscheck peers constrained-peers clean

.venv/base:
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	touch $@

.venv/zoo: .venv/base pyproject.toml setup.cfg constraints.txt
	$(INSTALL) --editable '.[zoo]'
	touch $@

.venv/dev: .venv/base pyproject.toml setup.cfg constraints.txt
	$(INSTALL) --editable '.[dev]'
	touch $@

.venv/docs: .venv/base pyproject.toml setup.cfg constraints.txt
	$(INSTALL) --editable '.[docs]'
	touch $@

demo: .venv/zoo
	$(BIN)/bilevel run hyper-cleaning --seed 100 --seeds 3 --out runs/linear
	$(BIN)/bilevel run hyper-cleaning --seed 100 --seeds 3 --solver penalty-sgd --out runs/linear-sgd
	$(BIN)/bilevel run hyper-cleaning --seed 100 --with model=mlp --out runs/mlp
	$(BIN)/bilevel run hyper-cleaning --seed 100 --with model=mlp --solver penalty-sgd --out runs/mlp-sgd

quick: .venv/dev
	$(BIN)/python -m pytest -n 2 -m quick

test: .venv/dev
	$(BIN)/python -m pytest -n 2

slow: .venv/dev
	$(BIN)/python -m pytest -n 2 -m slow

FUZZ ?= 10000
fuzz: .venv/dev
	FUZZ=$(FUZZ) $(BIN)/python -m pytest -n 2 tests/fuzz

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

crosscheck: .venv-crosscheck/done
	.venv-crosscheck/bin/python benchmarks/crosscheck.py

.venv-crosscheck/done: benchmarks/requirements-crosscheck.txt
	$(PYTHON) -m venv .venv-crosscheck
	.venv-crosscheck/bin/python -m pip install --quiet --requirement benchmarks/requirements-crosscheck.txt
	touch $@

# hypertorch is not on PyPI: make peers HYPERTORCH=<a checkout of github.com/prolearner/hypertorch>, and so BETTY, for a newer one
peers: .venv-peers/done
	.venv-peers/bin/python benchmarks/bilevel_peers.py $(if $(HYPERTORCH),--hypertorch $(HYPERTORCH)) $(if $(BETTY),--betty $(BETTY))

SETS ?= cutest-eq hs-ineq torch-small sparse dense
constrained-peers: .venv-peers/done
	.venv-peers/bin/python benchmarks/constrained_peers.py --set $(SETS)

.venv-peers/done: benchmarks/requirements-peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet 'pip<24.1'
	.venv-peers/bin/python -m pip install --quiet --no-deps --requirement benchmarks/requirements-peers.txt
	touch $@

docs: .venv/docs
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --show-traceback docs docs/_build/html

clean:
	rm -rf .venv .venv-crosscheck .venv-peers build dist *.egg-info docs/_build
