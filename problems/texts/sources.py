"""Where texts come from: Markov chains, or files that the user has. Each gives tokens and classes to a text problem.

Texts of files become their first 16 words, lower-case runs of letters and apostrophes, behind padding (token 0); words that are
not among the most frequent of the file are token 1. Files are read when a problem is made, and what they hold is checked.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from constrained.core.errors import OptionError, shown

from ..arguments import whole

LENGTH = 16
APART = 0.9  # share of a class's own transitions
WORD = re.compile(r"[a-z']+")


def transitions(rng: np.random.Generator, tokens: int) -> np.ndarray:
    """(tokens, tokens): rows of a Dirichlet distribution that favours few successors."""
    return rng.dirichlet(np.full(tokens, 0.3), tokens)


def walks(rng: np.random.Generator, chains: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n, 16): a walk for each label along its chain, from a uniform token. chains: (labels, tokens, tokens)."""
    rows, found = np.cumsum(chains, axis=-1), np.empty((len(labels), LENGTH), dtype=np.int64)
    last = chains.shape[-1] - 1
    found[:, 0] = rng.integers(0, last + 1, len(labels))
    for t in range(1, LENGTH):
        steps = rows[labels, found[:, t - 1]]
        found[:, t] = np.minimum((rng.random(len(labels))[:, None] > steps).sum(1), last)
    return found


class Source(ABC):
    """tokens: how many there are; classes: labels are 0..classes-1."""

    tokens: int
    classes: int

    @abstractmethod
    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """n texts as tokens (n, 16) and their labels (n,), in random order, by the generator alone."""


@dataclass(frozen=True)
class Chains(Source):
    """Two classes, a Markov chain of 30 tokens each; the chains share a tenth of their transitions."""

    tokens = 30
    classes = 2

    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        shared = transitions(rng, self.tokens)
        chains = np.stack([(1 - APART) * shared + APART * transitions(rng, self.tokens) for _ in range(self.classes)])
        labels = rng.integers(0, self.classes, n)
        return walks(rng, chains, labels), labels


@dataclass(frozen=True)
class Passages(Source):
    """Labelled texts of a file: equally many of each class, drawn without replacement. tokens: size of the vocabulary."""

    path: str | Path
    tokens: int = 1000

    def __post_init__(self) -> None:
        whole(f"{type(self).__name__}(tokens=...)", self.tokens, 3)
        if not isinstance(self.path, str | Path):
            raise OptionError(f"{type(self).__name__}(path=...): expected a path, got {self.path!r}")

    @abstractmethod
    def read(self) -> Iterator[tuple[str, int]]:
        """The texts with their labels. Raises OptionError with file and place for what is not of the format."""

    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        passages = [(WORD.findall(text.lower()), label) for text, label in self.read()]
        counts = Counter(word for words, _ in passages for word in words)
        common = sorted(counts, key=lambda word: (-counts[word], word))[: self.tokens - 2]
        place, labels = {word: i + 2 for i, word in enumerate(common)}, np.array([label for _, label in passages], dtype=int)
        chosen = []
        for label in range(self.classes):
            members, wanted = np.flatnonzero(labels == label), n // self.classes + (label < n % self.classes)
            if len(members) < wanted:
                raise OptionError(f"{self.path}: expected at least {wanted} texts of class {label}, got {len(members)}")
            chosen.append(rng.choice(members, wanted, replace=False))
        rows = rng.permutation(np.concatenate(chosen))
        tokens = np.zeros((n, LENGTH), dtype=np.int64)
        for row, i in zip(tokens, rows):
            words = passages[i][0][:LENGTH]
            row[LENGTH - len(words) :] = [place.get(word, 1) for word in words]
        return tokens, labels[rows]


@dataclass(frozen=True)
class Glosses(Passages):
    """WordNet's definitions by part of speech: 0 noun, 1 verb, 2 adjective, 3 adverb.

    path: a folder with data.noun, data.verb, data.adj and data.adv, as Debian's wordnet-base has it. Examples, which stand in
    quotes behind a definition, are left out. Format: wndb(5WN).
    """

    path: str | Path = "/usr/share/wordnet"
    classes = 4

    def read(self) -> Iterator[tuple[str, int]]:
        for label, (part, letters) in enumerate({"noun": "n", "verb": "v", "adj": "as", "adv": "r"}.items()):
            path, synset = Path(self.path) / f"data.{part}", re.compile(rf"\d{{8}} \d\d [{letters}] .*? \| (.+)")
            lines = _text(path, "a file of WordNet's database").splitlines()
            for number, line in enumerate(lines, 1):
                if line.startswith("  "):  # the licence
                    continue
                found = synset.match(line)
                if found is None:
                    wanted = f"`offset file {letters[0]} words ... | gloss`"
                    raise OptionError(f"{path}:{number}: expected {wanted}, got {line[:60]!r}")
                yield found[1].partition('; "')[0], label


@dataclass(frozen=True)
class Sentiment140(Passages):
    """Tweets by sentiment, 0 or 1, from a file of LEAF's sent140.

    path: a JSON object with user_data: user -> {"x": [[id, date, query, user, text, ...], ...], "y": [0 or 1, ...]}.
    """

    classes = 2

    def read(self) -> Iterator[tuple[str, int]]:
        whole_file = _json(self.path, _text(self.path, "LEAF's JSON"))
        users = whole_file.get("user_data") if isinstance(whole_file, dict) else None
        if not isinstance(users, dict):
            raise OptionError(f"{self.path}: expected LEAF's JSON, an object with user_data, got {shown(whole_file)}")
        for user, data in users.items():
            x, y = (data.get(name) if isinstance(data, dict) else None for name in "xy")
            if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y):
                raise OptionError(f"{self.path}: user {user}: expected lists x and y of one length, got {shown(data)}")
            for i, (tweet, label) in enumerate(zip(x, y)):
                where = f"{self.path}: user {user}, tweet {i}"
                if not isinstance(tweet, list) or len(tweet) < 5 or not isinstance(tweet[4], str):
                    raise OptionError(f"{where}: expected [id, date, query, user, text, ...], got {shown(tweet)}")
                if label not in (0, 1, "0", "1"):
                    raise OptionError(f"{where}: expected a label 0 or 1, got {shown(label)}")
                yield tweet[4], int(label)


@dataclass(frozen=True)
class SNLI(Passages):
    """Pairs of sentences: 0 entailment, 1 neutral, 2 contradiction, from SNLI's JSON lines.

    path: a line an object with gold_label, sentence1 and sentence2; pairs without agreement, "-", are left out.
    """

    classes = 3

    def read(self) -> Iterator[tuple[str, int]]:
        names = {"entailment": 0, "neutral": 1, "contradiction": 2}
        for number, line in enumerate(_text(self.path, "SNLI's JSON lines").splitlines(), 1):
            where = f"{self.path}:{number}"
            one = _json(where, line)
            gold, *pair = (one.get(key) if isinstance(one, dict) else None for key in ("gold_label", "sentence1", "sentence2"))
            sentences = [sentence for sentence in pair if isinstance(sentence, str)]
            if gold not in (*names, "-") or len(sentences) != 2:
                raise OptionError(f"{where}: expected gold_label, sentence1 and sentence2, got {shown(one)}")
            if gold in names:
                yield " ".join(sentences), names[gold]


@dataclass(frozen=True)
class Reviews(Passages):
    """Product reviews by sentiment, 0 negative, 1 positive.

    path: a JSON list of objects with text and label ("negative" or "positive"); domain and other keys are not read.
    """

    classes = 2

    def read(self) -> Iterator[tuple[str, int]]:
        every = _json(self.path, _text(self.path, "a JSON list of reviews"))
        if not isinstance(every, list):
            raise OptionError(f"{self.path}: expected a JSON list of reviews, got {shown(every)}")
        names = ("negative", "positive")
        for i, one in enumerate(every):
            text, label = (one.get(key) if isinstance(one, dict) else None for key in ("text", "label"))
            if not isinstance(text, str) or label not in names:
                raise OptionError(f"{self.path}: review {i}: expected text and a label of {names}, got {shown(one)}")
            yield text, names.index(label)


def _text(path: str | Path, what: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as cause:
        raise OptionError(f"{path}: expected {what}, cannot be read: {cause.strerror}") from cause
    except TypeError as cause:
        raise OptionError(f"path: expected {what}, got {shown(path)}") from cause
    except (UnicodeDecodeError, ValueError) as cause:  # ValueError: a name with a null character
        raise OptionError(f"{path}: expected {what}, not a binary or compressed file") from cause


def _json(where: str | Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise OptionError(f"{where}: expected JSON: {cause}, got {shown(text)}") from cause
