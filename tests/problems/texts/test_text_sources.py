"""Texts from files: each format from a small fixture, each fault named with file and place; WordNet where it is installed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from constrained.core.errors import OptionError
from problems import text_cleaning
from problems.texts.sources import LENGTH, SNLI, Chains, Glosses, Reviews, Sentiment140

LICENCE = "  1 This software and database is being provided to you\n"
WORDNET = {
    "noun": '00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which is; "full of rackets, balls and other objects"  ',
    "verb": "00002325 29 v 01 respire 1 001 $ 00001740 v 0000 01 + 02 00 | undergo the processes of respiration  ",
    "adj": "00002098 00 s 01 unable 0 000 | (usually followed by `to') not having the necessary means  ",
    "adv": '00001740 02 r 02 a_cappella 0 a_capella 0 000 | without musical accompaniment; "they performed a cappella"  ',
}
TWEET = ["1", "Mon", "NO_QUERY", "someone", "I LOVE it, don't you?", "training"]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def wordnet(folder: Path, copies: int = 1) -> Path:
    for part, line in WORDNET.items():
        (folder / f"data.{part}").write_text(LICENCE + f"{line}\n" * copies)
    return folder


def written(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


# -- what is read -----------------------------------------------------------------------------------------------------------
def test_glosses(tmp_path):
    found = list(Glosses(wordnet(tmp_path)).read())
    assert found == [
        ("that which is", 0),
        ("undergo the processes of respiration  ", 1),
        ("(usually followed by `to') not having the necessary means  ", 2),
        ("without musical accompaniment", 3),
    ]


def test_sentiment140(tmp_path):
    users = {"a": {"x": [TWEET, TWEET], "y": [1, 0]}, "b": {"x": [TWEET], "y": ["1"]}}
    path = written(tmp_path / "all.json", {"users": ["a", "b"], "num_samples": [2, 1], "user_data": users})
    assert list(Sentiment140(path).read()) == [(TWEET[4], 1), (TWEET[4], 0), (TWEET[4], 1)]


def test_snli(tmp_path):
    pair = {"sentence1": "A man sleeps.", "sentence2": "He is awake."}
    lines = [json.dumps({"gold_label": label, **pair}) for label in ("contradiction", "-", "entailment", "neutral")]
    assert [label for _, label in SNLI(written(tmp_path / "a.jsonl", "\n".join(lines) + "\n")).read()] == [2, 0, 1]
    assert next(iter(SNLI(tmp_path / "a.jsonl").read()))[0] == "A man sleeps. He is awake."


def test_reviews(tmp_path):
    rows = [{"text": "good", "label": "positive", "domain": "books"}, {"text": "bad", "label": "negative"}]
    assert list(Reviews(written(tmp_path / "a.json", rows)).read()) == [("good", 1), ("bad", 0)]


def test_texts_are_their_first_words_behind_padding(tmp_path):
    """The vocabulary: the most frequent words, ties in the order of the alphabet; equally many of each class."""
    rows = [{"text": "Good good, GOOD-bad!", "label": "positive"}, {"text": "bad " * 20, "label": "negative"}]
    rows += [{"text": "", "label": "negative"}, {"text": "rare isn't", "label": "positive"}]
    tokens, labels = Reviews(written(tmp_path / "a.json", rows), tokens=4).draw(rng(), 4)
    assert tokens.shape == (4, LENGTH)
    assert sorted(labels) == [0, 0, 1, 1]
    found = {tuple(row[row > 0]) for row in tokens}
    assert found == {(3, 3, 3, 2), (2,) * 16, (), (1, 1)}  # bad: 21 times, good: 3; the others unknown
    again, _ = Reviews(tmp_path / "a.json", tokens=4).draw(rng(), 4)
    assert (tokens == again).all()


def test_glosses_make_a_cleaning_problem(tmp_path):
    instance = text_cleaning(data=Glosses(wordnet(tmp_path, copies=500), tokens=20), rate=0.2)
    problem = instance.problem
    assert problem.y.out.out_features == 4
    assert problem.y.encoder.embed.num_embeddings == 20
    assert torch.bincount(problem.upper_data.full().draw(0, 0, 0)[1], minlength=4).min() > 40


def test_chains_differ_by_class():
    tokens, labels = Chains().draw(rng(), 4000)
    counts = [np.zeros((30, 30)) for _ in range(2)]
    for label in (0, 1):
        rows = tokens[labels == label]
        np.add.at(counts[label], (rows[:, :-1].ravel(), rows[:, 1:].ravel()), 1)
    shares = [count / count.sum(1, keepdims=True) for count in counts]
    assert np.abs(shares[0] - shares[1]).sum(1).mean() > 1  # of at most 2


# -- what is refused --------------------------------------------------------------------------------------------------------
FAULTS = {
    "no folder": (Glosses, None, "data.noun"),
    "no LEAF": (Sentiment140, [1], "user_data"),
    "no JSON": (Sentiment140, "<html>", "expected JSON"),
    "lengths": (Sentiment140, {"user_data": {"a": {"x": [TWEET], "y": []}}}, "user a"),
    "no tweet": (Sentiment140, {"user_data": {"a": {"x": [["1"]], "y": [1]}}}, "tweet 0"),
    "label of a tweet": (Sentiment140, {"user_data": {"a": {"x": [TWEET], "y": [4]}}}, "0 or 1"),
    "label of a pair": (SNLI, json.dumps({"gold_label": "maybe", "sentence1": "a", "sentence2": "b"}), ":1: expected gold_label"),
    "half a pair": (SNLI, json.dumps({"gold_label": "neutral", "sentence1": "a"}), "sentence2"),
    "no list": (Reviews, {"text": "a"}, "list of reviews"),
    "no label": (Reviews, [{"text": "a", "label": "good"}], "review 0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_of_the_format_is_named(tmp_path, name):
    cls, content, words = FAULTS[name]
    path = tmp_path / "file" if content is None else written(tmp_path / "file", content)
    with pytest.raises(OptionError, match=words) as caught:
        list(cls(path).read())
    assert str(path) in str(caught.value)
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["no synset", WORDNET["verb"], "00001740 03 n 01 entity 0 000", ""])
def test_a_line_that_is_no_synset_is_named(tmp_path, line):
    (wordnet(tmp_path) / "data.noun").write_text(f"{LICENCE}{WORDNET['noun']}\n{line}\n")
    with pytest.raises(OptionError, match=r"data\.noun:3: expected"):
        list(Glosses(tmp_path).read())


def test_binary_files_too_few_texts_and_options_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"\x1f\x8b\xff\x00")
    with pytest.raises(OptionError, match="binary"):
        list(SNLI(tmp_path / "a").read())
    with pytest.raises(OptionError, match="at least 475 texts of class 0, got 1"):
        text_cleaning(data=Glosses(wordnet(tmp_path)))
    with pytest.raises(OptionError, match="tokens"):
        Glosses(tokens=2)
    with pytest.raises(OptionError, match="path"):
        Glosses(path=3)  # pyright: ignore[reportArgumentType]


# -- WordNet itself ---------------------------------------------------------------------------------------------------------
INSTALLED = pytest.mark.skipif(not Path("/usr/share/wordnet/data.noun").exists(), reason="wordnet-base is not installed")


@INSTALLED
def test_wordnet_is_read_to_the_end():
    counts = np.bincount([label for _, label in Glosses().read()])
    assert (counts > [80_000, 13_000, 18_000, 3_000]).all()


@INSTALLED
@pytest.mark.slow
def test_parts_of_speech_are_learnt_from_glosses():
    """Plain training on right labels tells four parts of speech apart; learned weights rank right labels above wrong ones."""
    instance = text_cleaning(data=Glosses(), dtype=torch.float32)
    baselines = {row.name: row.accuracy for row in instance.study.baselines(1500)}
    assert baselines["right labels alone (an oracle)"] >= 0.5
