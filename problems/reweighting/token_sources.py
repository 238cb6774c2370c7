"""Sources of token sequences: walks of a Markov chain with noise, or bytes of texts that lie on this machine."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from constrained.core.errors import OptionError

from ..arguments import whole

VOCAB, LENGTH = 64, 32
SPREAD = 0.05  # of the Dirichlet distribution of a token's successors: few of them are likely
BYTES, CHUNK = 128, 64  # vocabulary of texts; sequences that go to one part together
FORTUNES = Path("/usr/share/games/fortunes")  # where Debian's `fortunes` puts them
LIBRARIES = {
    "numpy": ("numpy", "numpy.fft", "numpy.linalg", "numpy.random"),
    "scipy": ("scipy.integrate", "scipy.interpolate", "scipy.linalg", "scipy.optimize", "scipy.signal", "scipy.stats"),
    "torch": ("torch", "torch.nn", "torch.nn.functional", "torch.optim"),
}


@dataclass(frozen=True, eq=False)
class TokenSources:
    """Sequences of tokens 0..vocab-1, each a tensor (n, length) of int64.

    sources: by name; validation, test: sequences of the wanted kind, in no source; matching: the sources of that kind.
    """

    sources: dict[str, Tensor]
    validation: Tensor
    test: Tensor
    vocab: int
    matching: tuple[str, ...]

    @property
    def length(self) -> int:
        return self.test.shape[1]

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of `SourceBatches`."""
        return tuple(sorted(self.sources))


def noisy_chains(
    seed: int,
    rates: Sequence[float] = (0.0, 0.5, 1.0),
    *,
    rows: int = 600,
    validation: int = 200,
    test: int = 400,
    device: torch.device | str = "cpu",
) -> TokenSources:
    """Walks of a Markov chain on 64 tokens, 32 long; in source i each token is a uniform one with probability rates[i].

    Successors of a token: a Dirichlet distribution with parameter 0.05. rows: sequences of each source. Validation and test
    sequences have no noise; sources with the smallest rate match them.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 40]))
    chain = rng.dirichlet(np.full(VOCAB, SPREAD), VOCAB)
    made: dict[str, Tensor] = {}
    for i, rate in enumerate(rates):
        tokens = walk(rng, chain, rows)
        noise = rng.integers(0, VOCAB, tokens.shape)
        made[f"{i} noise {rate:g}"] = torch.from_numpy(np.where(rng.random(tokens.shape) < rate, noise, tokens)).to(device)
    held, judged = (torch.from_numpy(walk(rng, chain, n)).to(device) for n in (validation, test))
    matching = tuple(name for name, rate in zip(made, rates) if rate == min(rates))
    return TokenSources(made, held, judged, VOCAB, matching)


def walk(rng: np.random.Generator, chain: np.ndarray, n: int) -> np.ndarray:
    """(n, 32): walks along the rows of transition probabilities, from uniform tokens."""
    sums, found = np.cumsum(chain, axis=1), np.empty((n, LENGTH), dtype=np.int64)
    found[:, 0] = rng.integers(0, len(chain), n)
    for t in range(1, LENGTH):
        found[:, t] = np.minimum((rng.random(n)[:, None] > sums[found[:, t - 1]]).sum(1), len(chain) - 1)
    return found


# -- texts ------------------------------------------------------------------------------------------------------------------
def byte_texts(seed: int, *, length: int = 64, device: torch.device | str = "cpu") -> TokenSources:
    """Bytes of English texts, those above 127 left out. What is looked for is the language reference of Python.

    Sources: `python`, the topics of its help (`pydoc_data`); docstrings of `numpy`, `scipy` and `torch`; Debian's `fortunes`
    where they are installed; `shuffled`, the bytes of `python` in random order. Of the topics a tenth each, in pieces of 4 kB
    drawn by the seed, is for validation and for the test and in no source.
    """
    whole("byte_texts(length=...)", length, 2)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 41]))
    topics = importlib.import_module("pydoc_data.topics").topics
    pieces = _sequences("\n".join(topics[name] for name in sorted(topics)), length).split(CHUNK)
    order = [pieces[i] for i in rng.permutation(len(pieces))]
    tenth = len(order) // 10
    validation, test, python = (torch.cat(part) for part in (order[:tenth], order[tenth : 2 * tenth], order[2 * tenth :]))
    made = {"python": python, "shuffled": python.reshape(-1)[rng.permutation(python.numel())].reshape(python.shape)}
    made |= {name: _sequences(docstrings(modules), length) for name, modules in LIBRARIES.items()}
    if FORTUNES.is_dir():
        files = sorted(path for path in FORTUNES.iterdir() if path.is_file() and not path.suffix)
        made["fortunes"] = _sequences("\n".join(path.read_text("utf-8", errors="ignore") for path in files), length)
    made = {name: part.to(device) for name, part in made.items()}
    return TokenSources(made, validation.to(device), test.to(device), BYTES, ("python",))


def docstrings(modules: Sequence[str]) -> str:
    """What the public names of modules say of themselves, each text once, in the order of names."""
    found: dict[str, None] = {}
    for module in map(importlib.import_module, modules):
        for name, value in sorted(vars(module).items()):
            text = getattr(value, "__doc__", None)
            if not name.startswith("_") and isinstance(text, str):
                found[text] = None
    return "\n".join(found)


def _sequences(text: str, length: int) -> Tensor:
    """The text's ASCII characters, cut into sequences (n, length)."""
    codes = np.frombuffer(text.encode("ascii", errors="ignore"), dtype=np.uint8).astype(np.int64)
    n = len(codes) // length
    if n == 0:
        raise OptionError(f"byte_texts(length={length}): longer than a whole source of {len(codes)} characters")
    return torch.from_numpy(codes[: n * length].reshape(n, length))
