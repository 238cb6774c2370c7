"""Files in LIBSVM's format: a row a line, `label index:value index:value ...  # comment`, indices from 1 and ascending."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from constrained.core.arguments import expect
from constrained.core.errors import OptionError, shown
from constrained.core.options import Steps

LARGEST = 2**28  # numbers of the dense array: 2 GiB
DIGITS = 18  # of an index


def read_libsvm(path: str | Path, features: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(a, y): a dense N x n array and labels of two classes, the greater as +1 and the smaller as -1.

    features: n, where the last features are zero in every row; None is the greatest index in the file. Raises OptionError naming
    file and line for what is no such file.
    """
    expect("features", features, Steps | None)
    labels: list[float] = []
    rows: list[tuple[list[int], list[float]]] = []
    lines = _lines(path)
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words:
            where = f"{path}:{number}"
            labels.append(_number(where, "a label", words[0]))
            rows.append(_entries(where, words[1:]))
    classes = sorted(set(labels))
    if len(classes) != 2:
        raise OptionError(f"{path}: expected rows of two classes, got {len(rows)} rows of {len(classes)}")
    greatest = max((index for indices, _ in rows for index in indices[-1:]), default=0)
    if greatest == 0 or (features is not None and greatest > features):
        raise OptionError(f"{path}: expected indices in 1..{shown(features) if features else 'n'}, got {greatest or 'none'}")
    n = features or greatest
    if len(rows) * n > LARGEST:
        raise OptionError(f"{path}: {len(rows)} rows with {shown(n)} features are too many for a dense array")
    a = np.zeros((len(rows), n))
    for row, (indices, values) in zip(a, rows):
        row[np.asarray(indices, dtype=int) - 1] = values
    return a, np.where(np.asarray(labels) == classes[1], 1.0, -1.0)


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as cause:
        raise OptionError(f"{path}: cannot be read: {cause.strerror}") from cause
    except TypeError as cause:
        raise OptionError(f"path: expected the path of a file, got {shown(path)}") from cause
    except (UnicodeDecodeError, ValueError) as cause:  # ValueError: a name with a null character
        raise OptionError(f"{path}: expected a text file in LIBSVM's format, not a binary or compressed one") from cause


def _entries(where: str, words: list[str]) -> tuple[list[int], list[float]]:
    indices: list[int] = []
    values: list[float] = []
    for word in words:
        index, colon, value = word.partition(":")
        digits = index.lstrip("0") or "0"
        if not colon or not index.isascii() or not index.isdigit() or len(digits) > DIGITS:
            raise OptionError(f"{where}: expected index:value, got {shown(word)}")
        if int(digits) <= (indices[-1] if indices else 0):
            raise OptionError(f"{where}: expected ascending indices from 1, got {shown(word)}")
        indices.append(int(digits))
        values.append(_number(where, "index:value", value, word))
    return indices, values


def _number(where: str, what: str, text: str, word: str | None = None) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise OptionError(f"{where}: expected {what} with a finite number, got {shown(word or text)}")
    return number
