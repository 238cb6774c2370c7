"""From texts to token ids: texts from lists, datasets and files; tokenizers of any make."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from constrained.core.arguments import expect
from constrained.core.errors import ProblemError
from constrained.core.options import INF, Range

TOKEN = Range(0, INF, "a token id >= 0", open_high=True, whole=True)


class Tokenizer(Protocol):
    """What turns a text into ids: a tokenizer of `transformers`, `tokenizers`, `tiktoken`, ... or one of your own.

    `encode(text)` gives the ids, as integers or as an object with `ids`. Where it takes `add_special_tokens`, a text behind a
    prompt is encoded without them. `eos_token_id` and `pad_token_id` are read where there are such. A function text -> ids is
    taken as well.
    """

    def encode(self, text: str) -> Sequence[int]:
        """The ids of a text."""
        ...


class Bytes:
    """The bytes of UTF-8 as tokens: ids 0 to 255, end of text 256, padding 257. For tests and models trained from scratch.

    `len(tokenizer)` is the size of the vocabulary, 258.

    >>> tokenizer = Bytes()
    >>> tokenizer.encode("Añ"), tokenizer.decode([65, 195, 177, 256]), len(tokenizer)
    ([65, 195, 177], 'Añ', 258)
    """

    eos_token_id = 256
    pad_token_id = 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without end of text and padding; a sequence that is no UTF-8 becomes U+FFFD."""
        return bytes(int(i) for i in ids if i < 256).decode(errors="replace")

    def __len__(self) -> int:
        return 258


@dataclass(frozen=True)
class Encoder:
    """A tokenizer as the rows need it. eos ends a text, pad fills a row."""

    encode: Callable[..., Any]
    special: bool  # encode knows add_special_tokens
    eos: int
    pad: int

    @staticmethod
    def of(who: str, tokenizer: Any, eos: int | None, pad: int | None = None) -> Encoder:
        """Raises ProblemError for what is no tokenizer, and where neither it nor the caller says how a text ends."""
        encode = getattr(tokenizer, "encode", tokenizer)
        if not callable(encode) or isinstance(tokenizer, (str, type)):
            got = repr(tokenizer) if isinstance(tokenizer, (str, type)) else type(tokenizer).__name__
            raise ProblemError(f"{who}: tokenizer: expected an object with encode(text), or a function of a text, got {got}")
        eos = getattr(tokenizer, "eos_token_id", None) if eos is None else eos
        pad = getattr(tokenizer, "pad_token_id", None) if pad is None else pad
        pad = eos if pad is None else pad  # it is masked anyway
        for name, value in (("eos", eos), ("pad", pad)):
            missing = "" if value is not None else f": the tokenizer {type(tokenizer).__name__} has no {name}_token_id"
            expect(f"{who}: {name}", value, TOKEN, ProblemError, why=missing)
        assert eos is not None
        assert pad is not None
        try:
            special = "add_special_tokens" in inspect.signature(encode).parameters
        except (TypeError, ValueError):  # a function without a readable signature
            special = False
        return Encoder(encode, special, eos, pad)

    def ids(self, text: str, **options: Any) -> list[int]:
        found = self.encode(text, **options)
        return [int(i) for i in getattr(found, "ids", found)]

    def document(self, text: str) -> list[int]:
        """Begun as the tokenizer begins texts, and ended by one eos."""
        ids = self.ids(text)
        return ids if ids and ids[-1] == self.eos else [*ids, self.eos]

    def answer(self, prompt: str, text: str) -> tuple[list[int], int]:
        """Prompt, text and eos, and where the text begins."""
        before = self.ids(prompt)
        before = before[:-1] if before and before[-1] == self.eos else before
        after = self.ids(text, add_special_tokens=False) if self.special else self.ids(text)
        return [*before, *after, self.eos], len(before)


def documents(who: str, source: Any, text: str, prompt: str | None = None) -> Iterator[tuple[str | None, str]]:
    """(prompt, text) of each document of a list or dataset: of texts, of dicts with a field `text`, of paths. Or ProblemError."""
    if isinstance(source, Path):
        source = _files(who, source)
    if isinstance(source, (str, bytes, Mapping, torch.Tensor)) or not isinstance(source, Iterable):
        got = f"{source!r:.60}" if isinstance(source, (str, bytes)) else type(source).__name__
        advice = ": give one of its splits" if isinstance(source, Mapping) else ""
        raise ProblemError(f"{who}: source: expected a Path, or a list or dataset of texts, got {got}{advice}")
    for i, item in enumerate(source):
        if isinstance(item, Path):
            item = _read(who, item)
        if isinstance(item, Mapping):
            yield None if prompt is None else _field(who, item, prompt, i), _field(who, item, text, i)
        elif not isinstance(item, str):
            raise ProblemError(f"{who}: source: document {i}: expected a text, a dict or a Path, got {type(item).__name__}")
        elif prompt is not None:
            raise ProblemError(f"{who}: source: document {i}: expected a dict with {prompt!r} and {text!r}, got a text")
        else:
            yield None, item


def _field(who: str, item: Mapping[str, Any], name: str, i: int) -> str:
    if name not in item:
        raise ProblemError(f"{who}: source: document {i}: expected a field {name!r}, got {sorted(map(str, item))}")
    if not isinstance(item[name], str):
        raise ProblemError(f"{who}: source: document {i}: field {name!r}: expected a text, got {type(item[name]).__name__}")
    return item[name]


def _files(who: str, path: Path) -> list[Path]:
    try:
        if not path.is_dir():
            return [path]
        found = sorted(path.glob("*.txt"))
    except OSError as cause:  # a name too long, a folder that may not be read
        raise ProblemError(f"{who}: source: {path!s:.60}: cannot be read: {cause.strerror}") from cause
    if not found:
        raise ProblemError(f"{who}: source: expected *.txt files in the folder {path}, got none")
    return found


def _read(who: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as cause:
        raise ProblemError(f"{who}: source: {path}: cannot be read: {cause.strerror}") from cause
    except UnicodeDecodeError as cause:
        raise ProblemError(f"{who}: source: {path}: expected text in UTF-8, got byte {cause.object[cause.start]:#x}") from cause
    except ValueError as cause:  # a name with a null character
        raise ProblemError(f"{who}: source: {path!s:.60}: cannot be read: {cause}") from cause
