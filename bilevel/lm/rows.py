"""Rows of tokens for `MiniBatches` and `SourceBatches`: packed, where no token is wasted, or padded, a document each."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from constrained.core.arguments import expect
from constrained.core.errors import ProblemError
from constrained.core.options import INF, Range

from .tokens import Encoder, documents

LENGTH = Range(2, INF, "an integer >= 2", open_high=True, whole=True)
IGNORED = -100  # the label of what is no target


class Packed(torch_data.Dataset):
    """Rows cut from one run of tokens, what `packed` gives. `tokens`: 1-D array; a last piece shorter than `length` is left out.

    A row: {"input_ids", "labels"}, both int64 of shape (length,) and equal.

    >>> rows = Packed(np.arange(7), 3)
    >>> len(rows), rows[1]["input_ids"]
    (2, tensor([3, 4, 5]))
    """

    def __init__(self, tokens: np.ndarray, length: int):
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        i = range(len(self))[i]
        ids = torch.from_numpy(np.array(self.tokens[i * self.length : (i + 1) * self.length], dtype=np.int64))
        return {"input_ids": ids, "labels": ids}

    @property
    def highest(self) -> int:
        """The largest id."""
        return int(self.tokens.max())

    def __repr__(self) -> str:
        return f"Packed({len(self)} rows of {self.length} tokens)"


class Padded(torch_data.Dataset):
    """Rows of one document each, what `padded` gives. `tokens`: of all documents, one after another; `ends`: where each ends;
    `begins`: how many of its tokens are no targets; `pad`: the id that fills rows up to `length`.

    A row: {"input_ids", "attention_mask", "labels"}, int64 of shape (length,); labels are -100 at padding and prompts.

    >>> rows = Padded(np.array([5, 6, 7, 8]), np.array([1, 4]), np.array([0, 2]), length=4, pad=0)
    >>> rows[1]["input_ids"], rows[1]["labels"], rows[1]["attention_mask"]
    (tensor([6, 7, 8, 0]), tensor([-100, -100,    8, -100]), tensor([1, 1, 1, 0]))
    """

    def __init__(self, tokens: np.ndarray, ends: np.ndarray, begins: np.ndarray, length: int, pad: int):
        self.tokens, self.ends, self.begins, self.length, self.pad = tokens, ends, begins, length, pad

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        i = range(len(self))[i]
        start = self.ends[i - 1] if i else 0
        n = int(self.ends[i] - start)
        ids, labels, mask = (torch.full((self.length,), fill) for fill in (self.pad, IGNORED, 0))
        ids[:n] = torch.from_numpy(self.tokens[start : self.ends[i]].astype(np.int64))
        labels[self.begins[i] : n] = ids[self.begins[i] : n]
        mask[:n] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    @property
    def highest(self) -> int:
        """The largest id."""
        return max(int(self.tokens.max()), self.pad)

    def __repr__(self) -> str:
        return f"Padded({len(self)} rows of {self.length} tokens)"


def packed(source: Any, length: int, tokenizer: Any = None, *, text: str = "text", eos: int | None = None) -> Packed:
    """Rows of exactly `length` tokens: the documents one after another, each ended by eos, cut where a row is full.

    source: texts, that is a list or dataset of strings, of dicts with a field `text`, or of `Path`s, or one `Path`: a text file
    (one document) or a folder (its `*.txt`, by name). Or tokens, which need no tokenizer and are taken as they are: a 1-D
    integer tensor or array, a `Path` to an `.npy` file, which is mapped and not loaded. length: >= 2. tokenizer: a `Tokenizer`.
    eos: by default the tokenizer's `eos_token_id`.

    Empty documents are left out, and what is left at the end. All tokens but the first of a row are targets; a row may hold
    several documents, which see one another. Raises ProblemError for what is no source or tokenizer, ids below 0, and less than
    one row.

    >>> from bilevel.lm import Bytes
    >>> rows = packed(["ab", "c"], 2, Bytes())
    >>> [row["input_ids"].tolist() for row in rows]
    [[97, 98], [256, 99]]

    Source: the rows of GPT-2's and GPT-3's training, arXiv 2005.14165.
    """
    expect("packed: length", length, LENGTH, ProblemError)
    if isinstance(source, Path) and source.suffix == ".npy":
        source = _mapped(source)
    if isinstance(source, (Tensor, np.ndarray)):
        tokens = _checked(source)
    else:
        if tokenizer is None:
            raise ProblemError("packed: tokenizer: expected one for a source of texts, got None")
        encoder, found = Encoder.of("packed", tokenizer, eos), array("q")
        for _, document in documents("packed", source, text):
            if document:
                found.extend(encoder.document(document))
        tokens = np.array(found, dtype=np.int32)
    if len(tokens) < length:
        raise ProblemError(f"packed: source: expected at least {length} tokens, one row, got {len(tokens)}")
    return Packed(tokens, length)


def padded(
    source: Any,
    length: int,
    tokenizer: Any,
    *,
    text: str = "text",
    prompt: str | None = None,
    eos: int | None = None,
    pad: int | None = None,
) -> Padded:
    """A row for each document: its first `length` tokens, eos after it, and padding, which is no target and not attended to.

    source, tokenizer: texts and what encodes them, as in `packed`. prompt: for dicts, the field of what precedes the text; its
    tokens are no targets (prompt and text are encoded one by one). length: >= 2; every row is that long, so choose it well.
    eos, pad: by default the tokenizer's, and eos for a tokenizer without padding.

    Raises ProblemError for what is no source or tokenizer, and where no row has a target, as when `length` cuts every row off
    within its prompt. Single rows without targets are kept: their loss is 0.

    >>> from bilevel.lm import Bytes
    >>> rows = padded([{"question": "1+1=", "answer": "2"}], 8, Bytes(), prompt="question", text="answer")
    >>> rows[0]["input_ids"], rows[0]["labels"]
    (tensor([ 49,  43,  49,  61,  50, 256, 257, 257]), tensor([-100, -100, -100, -100,   50,  256, -100, -100]))

    Source: the batches of supervised fine-tuning, arXiv 2203.02155.
    """
    expect("padded: length", length, LENGTH, ProblemError)
    encoder = Encoder.of("padded", tokenizer, eos, pad)
    found, ends, begins = array("q"), [], []
    for before, document in documents("padded", source, text, prompt):
        ids, begin = (encoder.document(document), 0) if before is None else encoder.answer(before, document)
        found.extend(ids[:length])
        ends.append(len(found))
        begins.append(min(begin, length))
    if not ends:
        raise ProblemError("padded: source: expected at least one document, got none")
    rows = Padded(np.array(found, dtype=np.int32), np.array(ends), np.array(begins), length, encoder.pad)
    if not (np.diff(rows.ends, prepend=0) > np.maximum(rows.begins, 1)).any():  # a row's first token is no target
        raise ProblemError(f"padded: length: expected rows with a target, got none within {length} tokens")
    return rows


def _mapped(path: Path) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as cause:  # numpy's and zipfile's, whatever is in the file
        raise ProblemError(f"packed: source: {path}: expected an .npy file of integers: {cause}") from cause
    if not isinstance(found, np.ndarray):
        raise ProblemError(f"packed: source: {path}: expected an .npy file of integers, got an archive")
    return found


def _checked(source: Tensor | np.ndarray) -> np.ndarray:
    tokens = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ProblemError(f"packed: source: expected 1-D integer tokens, got {tokens.dtype} of shape {tokens.shape}")
    if len(tokens) and tokens.dtype.kind == "i" and tokens.min() < 0:
        raise ProblemError(f"packed: source: expected token ids >= 0, got {tokens.min()}")
    return tokens
