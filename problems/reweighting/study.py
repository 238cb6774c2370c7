"""How learned weights of sources are judged: what they weigh, and the models that come of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel.mixture import Mixture
from bilevel.solvers.scalebio import ScaleBiOState
from constrained.core.errors import extra
from constrained.core.result import Result

from ..report.averages import Averages
from ..report.spread import spread
from .labelled_sources import LabelledSources, alone

DRAWN = 600  # rows of the sampling plan


@dataclass(frozen=True, kw_only=True)
class WeightRow:
    """weights: of the sources, None where the method has none of its own; clean: the sum of those of the clean sources."""

    name: str
    weights: tuple[float, ...] | None = None
    clean: float | None = None


class WeightStudy(Averages):
    """A study with a second table: the weight of each source. names: of the sources."""

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)

    def tables(self, runs: list[list[Any]]) -> list[Any]:
        table = extra("rich.table", "zoo").Table(title="weights of the sources")
        table.add_column("method")
        for name in self.names:
            table.add_column(name, justify="right")
        for rows in zip(*runs):
            if rows[0].weights is not None:
                table.add_row(rows[0].name, *(str(spread(weights)) for weights in zip(*(row.weights for row in rows))))
        return [*super().tables(runs), table]


def correlation(wrong: Sequence[float], weights: Sequence[float]) -> float | None:
    """Spearman's rank correlation of the shares of wrong labels and the weights; None where all weights are equal.

    Equal shares have equal ranks: -1 is out of reach where some are and the weights differ. See `most`.
    """
    from scipy.stats import spearmanr  # which takes a second to import

    if max(weights) - min(weights) <= 1e-12:
        return None
    return float(spearmanr(wrong, weights).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def most(wrong: Sequence[float]) -> float:
    """The least correlation that weights without ties can have."""
    found = correlation(sorted(wrong), [-float(rank) for rank in range(len(wrong))])
    assert found is not None
    return found


@dataclass(frozen=True, kw_only=True)
class Row(WeightRow):
    """accuracy: on the test rows; correlation: of the weights with the shares of wrong labels, by ranks."""

    accuracy: float
    correlation: float | None = None


class LabelStudy(WeightStudy):
    """Learned weights beside other ways to weigh the same sources: the model of each is the minimiser of sum_i p_i l_i."""

    title = "accuracy on the test rows, sum of the clean sources' weights, rank correlation of weights and wrong labels"
    columns = {"accuracy": "accuracy", "clean": "clean mass", "correlation": "correlation"}
    claims = (
        "w has been trained on the validation rows too: judge weights by u or by a model fitted anew. Those rows alone make "
        "nearly as good a model here: what weights add is the rows of the clean sources. EL2N and GraNd do without them.",
    )

    def __init__(self, data: LabelledSources, lower: Mixture, seed: int):
        super().__init__(data.names)
        self.data, self.lower, self.seed = data, lower, seed

    def rows(self, result: Result) -> list[Row]:
        name, p = type(result.solver).__name__, self.lower.weights(result.x).detach()
        found = [self._row(f"{name}, its y", p, torch.as_tensor(result.y))]
        if isinstance(result.state, ScaleBiOState):
            w: Any = result.state.w.tree()
            found.append(Row(name=f"{name}, its w", accuracy=self.data.accuracy(w)))
        anew, plan = self.data.fitted(p), self.data.drawn(self.lower.sampling_plan(result.x, DRAWN), self.seed)
        found.append(Row(name="its weights, fitted anew", accuracy=self.data.accuracy(anew)))
        found.append(Row(name=f"its sampling plan, {DRAWN} rows", accuracy=self.data.accuracy(plan)))
        return found + self.baselines()

    def baselines(self) -> list[Row]:
        """Uniform weights; weights by size where sizes differ; the clean sources; the validation rows without any source.

        By EL2N and GraNd: the half of the sources with the highest scores, as rows are chosen in the paper, and the other half.
        """
        data = self.data
        like, sizes = data.test[0], torch.tensor(data.sizes).to(data.test[0])
        ways = {"uniform weights": torch.ones_like(sizes)}
        if len(set(data.sizes)) > 1:
            ways |= {"weights by size": sizes, "weights by size^(1/2)": sizes**0.5}
        ways["clean sources (an oracle)"] = torch.tensor([share == 0 for share in data.wrong]).to(like)
        for name, score in zip(("EL2N", "GraNd"), data.scores(self.seed)):
            half = (score.argsort().argsort() < len(score) // 2).to(like)
            ways |= {f"{name}, hard half": 1 - half, f"{name}, easy half": half}
        rows = [self._row(name, p / p.sum()) for name, p in ways.items()]
        return [*rows, Row(name="validation rows alone", accuracy=data.accuracy(alone(data.validation)))]

    def _row(self, name: str, p: Tensor, w: Tensor | None = None) -> Row:
        weights = tuple(p.tolist())
        clean = sum(one for one, share in zip(weights, self.data.wrong) if share == 0)
        accuracy = self.data.accuracy(self.data.fitted(p) if w is None else w)
        return Row(name=name, weights=weights, clean=clean, accuracy=accuracy, correlation=correlation(self.data.wrong, weights))
