"""EarlyStopping, TensorBoard, Progress's speed, the picture of weights and the memory report: what a long run needs."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    LISA,
    SGD,
    AdamW,
    BilevelProblem,
    Checkpoint,
    EarlyStopping,
    History,
    Live,
    MemoryReport,
    MiniBatches,
    Mixture,
    Penalty,
    Progress,
    ScaleBiO,
    SourceBatches,
    Status,
    TensorBoard,
    iterate,
    memory,
    per_source,
    plot_weights,
    solve,
)
from bilevel.advice.memory import MemoryWatch, peak, words
from constrained.core.callbacks import Speed
from constrained.core.errors import OptionError, OutputError, Unsuitable
from problems.quadratic import quadratic


class Words(nn.Module):
    """Embedding, two numbered layers, head: logits of the next token."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, width), nn.Linear(width, 6)
        self.h = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.h:
            x = torch.tanh(layer(x))
        return self.head(x)


def problem(width: int = 8, live: bool = True) -> BilevelProblem:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(6, (64, 1), generator=generator)
    clean = (first + torch.arange(5)) % 6
    noise = torch.randint(6, (64, 5), generator=generator)
    torch.manual_seed(0)
    model = Words(width)

    def token_loss(model: nn.Module, rows: Tensor) -> Tensor:
        logits = model(rows[:, :-1])
        return nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").mean(1)

    def losses(model: nn.Module, batch: tuple) -> Tensor:
        return per_source(token_loss(model, batch[0]), batch[1], 2)

    return BilevelProblem(
        upper=lambda x, model, rows: token_loss(model, rows).mean(),
        lower=Mixture(losses),
        x=torch.zeros(2),
        y=Live(model) if live else model,
        upper_data=MiniBatches(clean, 8),
        lower_data=SourceBatches({"clean": clean, "noise": noise}, 8),
    )


SOLVER = ScaleBiO(inner=AdamW(lr=0.01), outer=AdamW(lr=0.05))


# -- early stopping -----------------------------------------------------------------------------------------------------------
def looked(values, **options):
    """The steps after which an EarlyStopping stops, given what it measures at steps 1, 2, ..."""
    stopper = EarlyStopping(lambda event: values[event.k - 1], **options)
    for k in range(len(values) + 1):
        event = SimpleNamespace(k=k, agreed=lambda value: value, save=lambda path: None)
        if stopper(event):  # pyright: ignore
            return k, stopper
    return None, stopper


def test_it_stops_after_so_many_looks_without_a_new_low():
    stopped, stopper = looked([3.0, 2.0, 2.5, 2.5, 1.0, 1.5, 1.2, math.nan, 0.5], patience=3)
    assert (stopped, stopper.best, stopper.step) == (8, 1.0, 5)
    stopped, stopper = looked([3.0, 2.0, 1.0, 0.5], patience=2)
    assert (stopped, stopper.best, stopper.step) == (None, 0.5, 4)
    stopped, _ = looked([3.0, 2.95, 2.9], patience=2, least=0.2)
    assert stopped == 3
    stopped, stopper = looked([9.0, 1.0, 9.0, 2.0, 9.0, 3.0], patience=2, every=2)
    assert (stopped, stopper.best, stopper.step) == (6, 1.0, 2)


def test_the_best_point_comes_back(tmp_path):
    stopper = EarlyStopping(lambda event: abs(event.k - 6), patience=3, path=tmp_path / "best.pt")
    seen = {}

    def keep(event):
        seen[event.k] = event.state.x.ravel().clone()

    result = solve(problem(), SOLVER, max_steps=50, callbacks=[keep, stopper])
    assert (result.status, result.steps, stopper.step) == (Status.STOPPED, 9, 6)
    again = EarlyStopping(lambda event: abs(event.k - 6), patience=3)
    best = solve(problem(), SOLVER, max_steps=stopper.step, resume=tmp_path / "best.pt", callbacks=[again])
    assert best.steps == 6
    assert torch.equal(best.x, seen[6])


def test_its_count_travels_in_checkpoints(tmp_path):
    def stopper():
        return EarlyStopping(lambda event: event.k, patience=6)

    first = stopper()
    solve(problem(), SOLVER, max_steps=4, callbacks=[first, Checkpoint(tmp_path / "run.pt")])
    result = solve(
        problem(), SOLVER, max_steps=50, resume=tmp_path / "run.pt", callbacks=[stopper(), Checkpoint(tmp_path / "b.pt")]
    )
    assert (result.status, result.steps) == (Status.STOPPED, 7)


def test_early_stopping_refuses(tmp_path):
    for bad in ({"patience": 0}, {"every": 0}, {"least": -1.0}, {"patience": 2.5}):
        with pytest.raises(OptionError):
            EarlyStopping(lambda event: 0.0, **bad)
    with pytest.raises(OptionError, match="measure must be a function"):
        EarlyStopping("loss")  # pyright: ignore
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        EarlyStopping(lambda event: 0.0, path=tmp_path / "file" / "best.pt")


# -- what is shown and written --------------------------------------------------------------------------------------------------
def test_tensorboard_holds_weights_and_speed(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = solve(problem(), SOLVER, max_steps=6, callbacks=[TensorBoard(tmp_path / "board", every=2)])
    found = EventAccumulator(str(tmp_path / "board"))
    found.Reload()
    names = set(found.Tags()["scalars"])
    assert {"weight/clean", "weight/noise", "upper", "lower", "tokens", "rows", "gradients", "tokens/s"} <= names
    last = found.Scalars("weight/clean")[-1]
    assert last.step == 6
    assert last.value == pytest.approx(float(result.state.weights[0]), rel=1e-6)
    assert found.Scalars("tokens")[-1].value == result.calls.tokens == 6 * 5 * (2 * 16 + 8)


def test_the_progress_line_tells_tokens_a_second_and_the_largest_weights(monkeypatch):
    import rich.progress

    lines = []
    monkeypatch.setattr(rich.progress.Progress, "update", lambda self, task, **fields: lines.append(fields.get("figures", "")))
    solve(problem(), SOLVER, max_steps=3, callbacks=[Progress()])
    assert "tokens/s" in lines[-1]
    assert "clean 0." in lines[-1]
    lines.clear()
    solve(quadratic().problem, Penalty(), max_steps=2, callbacks=[Progress()])
    assert "tokens" not in lines[-1]


def test_speed_counts_rows_where_there_are_no_tokens():
    speed, total = Speed(), SimpleNamespace(tokens=0, rows=0)
    event = SimpleNamespace(seconds=0.0, calls=SimpleNamespace(total=lambda: total))
    assert speed(event) is None  # pyright: ignore
    event.seconds, total.rows = 2.0, 10
    assert speed(event) == ("rows/s", 5.0)  # pyright: ignore
    event.seconds, total.rows, total.tokens = 3.0, 20, 600
    assert speed(event) == ("tokens/s", 600.0)  # pyright: ignore


def test_the_picture_of_weights(tmp_path):
    history = History()
    solve(problem(), SOLVER, max_steps=3, callbacks=[history])
    plot_weights(history, tmp_path / "weights.png")
    assert (tmp_path / "weights.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(OutputError):
        plot_weights(history, tmp_path / "none" / "weights.png")
    with pytest.raises(OptionError, match="expected rows with weights"):
        plot_weights(History(), tmp_path / "weights.png")


# -- memory ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("solver", [ScaleBiO(), ScaleBiO(blocks=LISA(layers=1)), ScaleBiO(inner=SGD(momentum=0.9))], ids=repr)
@pytest.mark.parametrize("live", [True, False])
def test_the_report_is_the_peak_of_a_step(solver, live):
    """Within 10 % of what the profiler sees, the optimizer's state included."""
    what = problem(width=256, live=live)
    report = memory(what, solver)
    before = sum(4 * p.numel() for p in (what.y.module if live else what.y).parameters())
    measured = before + peak(lambda: solve(what, solver, max_steps=3), torch.device("cpu"))
    assert abs(measured / report.total - 1) <= 0.1, f"{measured} measured\n{report}"


def test_the_report_reads_as_a_table():
    report = MemoryReport(parameters=3 * 2**30, gradients=2**20, optimizer=2048, activations=5)
    assert str(report).split("\n")[0].split() == ["parameters", "3.00", "GiB"]
    assert str(report).endswith("total           3.00 GiB")
    assert [words(n) for n in (0, 5, 2**10, 3 * 2**19)] == ["0 B", "5 B", "1.00 KiB", "1.50 MiB"]


def test_a_watch_compares_at_the_end():
    watch = MemoryWatch(MemoryReport(parameters=2**20, gradients=0, optimizer=0, activations=0))
    for _ in iterate(problem(), SOLVER, max_steps=2, callbacks=[watch]):
        pass
    assert watch.peak >= 0
    assert "of the total" in str(watch)


def test_memory_refuses_other_solvers_and_problems():
    with pytest.raises(Unsuitable, match="expected a ScaleBiO, got Penalty"):
        memory(problem(), Penalty())  # pyright: ignore
    with pytest.raises(OptionError, match="expected a BilevelProblem"):
        memory(3, ScaleBiO())  # pyright: ignore
