"""The recurrent encoder for many tasks and the scalar regulariser: data, heads by Newton's method, baselines, learning."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bilevel import SOBA, BORep, solve
from constrained.core.errors import OptionError
from problems import hyper_representation, recurrent_regulariser
from problems.__main__ import main
from problems.texts.hyper_representation import TRAINED, fitted, tasks
from problems.texts.recurrent import Encoder
from problems.texts.recurrent_regulariser import GRID, parts

CPU = torch.device("cpu")


# -- many tasks -------------------------------------------------------------------------------------------------------------
def test_the_tasks_are_what_the_page_says():
    known, held_out = tasks(0, 20, 0.2, CPU)
    assert known.support[0].shape == known.query[0].shape == (10, 40, 16)
    assert (held_out.support[0].shape, held_out.query[0].shape) == ((5, 40, 16), (5, 200, 16))
    assert (int(known.support[0].min()), int(known.support[0].max())) == (0, 19)
    for part in (known, held_out):
        for _, labels in (part.support, part.query):
            assert (labels.double().mean(1) == 0.5).all()
    tokens, labels, task = known.rows(known.support)
    assert (tokens.shape, labels.shape) == ((400, 16), (400,))
    assert torch.equal(tokens[41], known.support[0][1, 1])
    assert task.tolist() == [d for d in range(10) for _ in range(40)]
    assert not torch.equal(tokens, tasks(1, 20, 0.2, CPU)[0].support[0].flatten(0, 1))


def test_the_encoder_has_the_stated_size():
    problem = hyper_representation().problem
    assert sum(p.numel() for p in problem.x.parameters()) == 2976
    assert problem.y.shape == (10, 25)
    features = problem.x(problem.lower_data.draw(0, 1, 0)[0])
    assert features.shape == (100, 24)
    assert float(features.detach().abs().max()) <= 1


def test_the_lower_level_is_a_sum_of_ridged_logistic_regressions():
    """Stationary where every task's head is the fitted one, and strongly convex by the ridge at least."""
    instance = hyper_representation(shots=5, ridge=0.05)
    oracle = instance.problem.full_batch().oracle()
    tokens, labels, task = instance.problem.lower_data.full().draw(0, 1, 0)
    features = instance.problem.x(tokens).detach()
    heads = torch.stack([fitted(features[task == d], labels[task == d], 0.05) for d in range(TRAINED)])
    y = oracle.variables["y"].map(lambda leaf: heads)
    assert float(oracle.g.grad_y(oracle.variables["x"], y, oracle.g.draw(0)).norm()) <= 1e-10
    here = oracle.g.at(oracle.variables["x"], y, oracle.g.draw(0))
    v = torch.randn(10, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Hv = here.yy(y.map(lambda leaf: v)).tree()
    assert float((v * Hv).sum() / (v * v).sum()) >= 0.05


def test_a_head_is_the_minimiser():
    generator = torch.Generator().manual_seed(0)
    A, labels = torch.randn(30, 24, generator=generator, dtype=torch.float64), torch.arange(30) % 2
    w = fitted(A, labels, 1e-3).requires_grad_()
    loss = F.binary_cross_entropy_with_logits(A @ w[:-1] + w[-1], labels.double()) + 0.5e-3 * (w**2).sum()
    assert float(torch.autograd.grad(loss, w)[0].norm()) <= 1e-8


@pytest.mark.parametrize(
    "bad", [{"shots": 0}, {"mix": -0.1}, {"mix": 1.5}, {"ridge": 0.0}, {"batch": 0}, {"seed": -1}, {"dtype": torch.int64}]
)
def test_bad_arguments_of_the_tasks_are_refused(bad):
    with pytest.raises(OptionError, match=next(iter(bad))):
        hyper_representation(**bad)


def test_the_start_is_left_alone_and_judged_as_the_random_encoder():
    instance = hyper_representation(shots=5, dtype=torch.float32)
    before = [p.detach().clone() for p in instance.problem.x.parameters()]
    result = solve(instance.problem, BORep(epochs=0), max_steps=2)
    learned, random, weak, together = instance.study.rows(result)
    assert [learned.name, random.name, together.name] == ["BORep", "random encoder", "one level"]
    assert "0.001" in weak.name
    assert isinstance(result.module(), Encoder)
    assert all(torch.equal(p, q) for p, q in zip(instance.problem.x.parameters(), before))
    assert random == instance.study.judge(instance.problem.x, "random encoder")
    assert len({row.loss for row in (learned, random, weak, together)}) == 4


@pytest.mark.slow
def test_a_learned_encoder_serves_new_tasks_better_than_a_random_one():
    """BORep and SOBA, means of two seeds: by 0.1 more accurate than a random encoder, by 0.06 than that with a weaker ridge."""
    gains = []
    for seed in range(2):
        instance = hyper_representation(seed=seed, dtype=torch.float32)
        for cls in (BORep, SOBA):
            one = instance.recommended[cls]
            result = solve(instance.problem, one.solver, max_steps=one.max_steps, seed=seed)
            learned, random, weak, together = instance.study.rows(result)
            gains.append([learned.accuracy - row.accuracy for row in (random, weak, together)])
    print(f"gains over the random encoder, with a weaker ridge, over one level\n{np.round(gains, 3)}")
    assert (np.mean(gains, axis=0)[:2] >= [0.1, 0.06]).all()


# -- one regulariser --------------------------------------------------------------------------------------------------------
def test_the_parts_are_what_the_page_says():
    data = parts(0, CPU)
    assert [len(part[1]) for part in (data.train, data.validate, data.test)] == [200, 300, 600]
    assert torch.equal(data.train[0], parts(0, CPU).train[0])
    assert not torch.equal(data.train[0], parts(1, CPU).train[0])
    problem = recurrent_regulariser().problem
    assert sum(p.numel() for p in problem.y.parameters()) == 3146
    with torch.no_grad():
        lower, upper = (level(torch.tensor(0.0), problem.y, data.train) for level in (problem.lower, problem.upper))
    assert float(lower - upper) == pytest.approx(0.5 * sum(float((p.detach() ** 2).sum()) for p in problem.y.parameters()))


def test_the_regulariser_is_judged_beside_a_grid():
    instance = recurrent_regulariser(dtype=torch.float32)
    solver = replace(instance.recommended[BORep].solver, epochs=0)
    result = solve(instance.problem, solver, max_steps=2)
    ours, again, best, *grid = instance.study.rows(result)
    assert -10 <= ours.x <= 0
    assert ours.x == again.x == float(result.x)
    assert [row.x for row in grid] == list(GRID)
    assert best.validation == min(row.validation for row in grid)
    assert (best.x, best.accuracy) in {(row.x, row.accuracy) for row in grid}
    assert all(math.isfinite(row.validation) for row in grid)


@pytest.mark.parametrize("bad", [{"batch": 0}, {"seed": 1.5}, {"dtype": torch.int64}])
def test_bad_arguments_of_the_regulariser_are_refused(bad):
    with pytest.raises(OptionError, match=next(iter(bad))):
        recurrent_regulariser(**bad)


@pytest.mark.parametrize("name", ["hyper-representation", "recurrent-regulariser"])
def test_the_command_line(name, capsys):
    words = ["run", name, "--dtype", "float32", "--max-steps", "2"]
    assert main([*words, "--solver", "soba"]) == 0
    assert main([*words, "--set", "epochs=0"]) == 0
    said = capsys.readouterr().out
    assert {"hyper-representation": "random encoder", "recurrent-regulariser": "x = -8"}[name] in said
    assert "SOBA" in said
