"""Language models, what needs torch alone: tokens, rows, the loss of a row, the problem made of them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bilevel
from bilevel import lm
from constrained.core.errors import BilevelError, OptionError, ProblemError

V = 258  # of Bytes


class Decoder(nn.Module):
    """Logits from the last two tokens; notes the mask that it was given."""

    def __init__(self, vocabulary=V, width=8, dtype=torch.float32):
        super().__init__()
        self.table = nn.Embedding(vocabulary, width, dtype=dtype)
        self.head = nn.Linear(width, vocabulary, dtype=dtype)
        self.masks = []

    def forward(self, input_ids, attention_mask=None):
        self.masks.append(attention_mask)
        hidden = self.table(input_ids)
        return self.head(hidden + F.pad(hidden, (0, 0, 1, 0))[:, :-1])


class Fixed(nn.Module):
    """The logits that it was given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids):
        return self.logits


class Words:
    """Whole words as tokens, begun by 1: what tokenizers with a BOS do unless told otherwise. No padding of its own."""

    eos_token_id = 2

    def encode(self, text, add_special_tokens=True):
        return [1] * add_special_tokens + [3 + len(word) for word in text.split()]


def listed(rows, key="input_ids"):
    return [row[key].tolist() for row in rows]


# -- tokens -----------------------------------------------------------------------------------------------------------------
def test_bytes_go_there_and_back():
    text = "a\tñ \U0001f600\n"
    tokenizer = lm.Bytes()
    assert tokenizer.decode([*tokenizer.encode(text), tokenizer.eos_token_id, tokenizer.pad_token_id]) == text
    assert max(tokenizer.encode(text)) < tokenizer.eos_token_id < tokenizer.pad_token_id < len(tokenizer)


def test_packed_rows_are_the_documents_joined_by_eos_and_cut():
    texts = ["Now is the winter", "", "of our discontent", "made glorious summer"]
    rows = lm.packed(texts, 7, lm.Bytes())
    whole = [i for text in texts if text for i in [*text.encode(), 256]]
    assert len(rows) == len(whole) // 7
    assert [i for row in listed(rows) for i in row] == whole[: 7 * len(rows)]
    assert listed(rows, "labels") == listed(rows)
    assert lm.Bytes().decode(whole) == "".join(texts)
    assert rows.highest == 256
    assert rows[-1]["input_ids"].equal(rows[len(rows) - 1]["input_ids"])


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda texts, folder: texts, id="strings"),
        pytest.param(lambda texts, folder: (text for text in texts), id="iterator"),
        pytest.param(lambda texts, folder: [{"text": text, "other": 1} for text in texts], id="dicts"),
        pytest.param(lambda texts, folder: folder, id="folder"),
        pytest.param(lambda texts, folder: sorted(folder.glob("*.txt")), id="paths"),
    ],
)
def test_texts_come_from_lists_datasets_and_files(made, tmp_path):
    texts = ["first text", "second one", "ünd noch einer"]
    for name, text in zip("bca", (texts[1], texts[2], texts[0])):  # names sorted, not as written
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "notes.md").write_text("no text of the corpus")
    assert listed(lm.packed(made(texts, tmp_path), 5, lm.Bytes())) == listed(lm.packed(texts, 5, lm.Bytes()))


def test_tokens_are_taken_as_they_are_and_files_of_them_mapped(tmp_path):
    tokens = np.arange(11, dtype=np.uint16)
    np.save(tmp_path / "tokens.npy", tokens)
    mapped = lm.packed(tmp_path / "tokens.npy", 4)
    assert isinstance(mapped.tokens, np.memmap)
    for source in (tokens, torch.arange(11), tmp_path / "tokens.npy"):
        rows = lm.packed(source, 4)
        assert listed(rows) == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert rows[0]["input_ids"].dtype == torch.int64
    rows[0]["input_ids"].fill_(9)  # a row has memory of its own
    assert listed(rows)[0] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "tokenizer",
    [
        pytest.param(lambda text: [ord(c) for c in text], id="function"),
        pytest.param(lambda text: [*(ord(c) for c in text), 9], id="ends texts itself"),
        pytest.param(lambda text: torch.tensor([ord(c) for c in text]), id="tensor"),
        pytest.param(lambda text: type("Encoding", (), {"ids": [ord(c) for c in text]})(), id="object with ids"),
    ],
)
def test_any_tokenizer_will_do_and_eos_stands_once(tokenizer):
    assert listed(lm.packed(["ab", "c"], 5, tokenizer, eos=9)) == [[97, 98, 9, 99, 9]]


# -- padded rows ------------------------------------------------------------------------------------------------------------
def test_padded_rows_mask_padding_and_prompts():
    data = [{"q": "a bb", "a": "ccc"}, {"q": "a", "a": "dd dd dd dd"}, {"q": "a b c d e f", "a": "g"}, {"q": "", "a": ""}]
    rows = lm.padded(data, 6, Words(), prompt="q", text="a")
    assert listed(rows) == [[1, 4, 5, 6, 2, 2], [1, 4, 5, 5, 5, 5], [1, 4, 4, 4, 4, 4], [1, 2, 2, 2, 2, 2]]
    assert listed(rows, "labels") == [[-100] * 3 + [6, 2, -100], [-100] * 2 + [5] * 4, [-100] * 6, [-100, 2] + [-100] * 4]
    assert listed(rows, "attention_mask") == [[1] * 5 + [0], [1] * 6, [1] * 6, [1, 1, 0, 0, 0, 0]]
    plain = lm.padded(["a bb"], 6, Words(), pad=0)
    assert (listed(plain), listed(plain, "labels")) == ([[1, 4, 5, 2, 0, 0]], [[1, 4, 5, 2, -100, -100]])
    assert lm.padded(["a bb"], 6, Words(), pad=300).highest == 300
    assert lm.padded([{"text": "a"}], 4, Words())[0]["labels"].tolist() == [1, 4, 2, -100]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: lm.packed("a text", 2, lm.Bytes()), "source: expected a Path, or a list or dataset of texts, got 'a text'"),
        (lambda: lm.packed({"train": []}, 2, lm.Bytes()), "got dict: give one of its splits"),
        (lambda: lm.packed(3, 2, lm.Bytes()), "dataset of texts, got int"),
        (lambda: lm.packed([3], 2, lm.Bytes()), "document 0: expected a text, a dict or a Path, got int"),
        (lambda: lm.packed([{"body": "a"}], 2, lm.Bytes()), "document 0: expected a field 'text', got ['body']"),
        (lambda: lm.packed([{"text": None}], 2, lm.Bytes()), "field 'text': expected a text, got NoneType"),
        (lambda: lm.packed(["a"], 2), "tokenizer: expected one for a source of texts, got None"),
        (
            lambda: lm.packed(["a"], 2, "gpt2"),
            "tokenizer: expected an object with encode(text), or a function of a text, got 'gpt2'",
        ),
        (lambda: lm.packed(["a"], 2, lm.Bytes), "tokenizer: expected"),
        (lambda: lm.packed(["a"], 2, 7), "got int"),
        (
            lambda: lm.packed(["a"], 2, lambda text: [1]),
            "eos: expected a token id >= 0, got None: the tokenizer function has no eos",
        ),
        (lambda: lm.packed(["a"], 2, lm.Bytes(), eos=-1), "eos: expected a token id >= 0, got -1"),
        (lambda: lm.packed(["a"], 1, lm.Bytes()), "length: expected an integer >= 2, got 1"),
        (lambda: lm.packed(["a"], 2.0, lm.Bytes()), "length: expected an integer >= 2, got 2.0"),
        (lambda: lm.packed(["a"], 3, lm.Bytes()), "expected at least 3 tokens, one row, got 2"),
        (lambda: lm.packed(torch.ones(4), 2), "expected 1-D integer tokens, got float32"),
        (lambda: lm.packed(np.ones((2, 2), int), 2), "of shape (2, 2)"),
        (lambda: lm.packed(np.array([1, -1]), 2), "expected token ids >= 0, got -1"),
        (lambda: lm.padded([], 2, lm.Bytes()), "expected at least one document, got none"),
        (lambda: lm.padded(["a"], 2, lm.Bytes(), prompt="q"), "document 0: expected a dict with 'q' and 'text', got a text"),
        (
            lambda: lm.padded([{"q": "abc", "text": "d"}], 3, lm.Bytes(), prompt="q"),
            "expected rows with a target, got none within 3",
        ),
        (lambda: lm.padded(["a"], 2, lm.Bytes(), pad=True), "pad: expected a token id"),
    ],
)
def test_bad_sources_are_refused(wrong, message):
    with pytest.raises(ProblemError) as caught:
        wrong()
    assert message in str(caught.value)


def test_bad_files_are_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "bad.npy").write_bytes(b"no array")
    for source, message in (
        (tmp_path / "none.txt", "none.txt: cannot be read: No such file"),
        (tmp_path / "latin.txt", "latin.txt: expected text in UTF-8, got byte 0xe9"),
        (tmp_path / "bad.npy", "bad.npy: expected an .npy file"),
        (tmp_path / "none.npy", "none.npy: expected an .npy file"),
    ):
        with pytest.raises(ProblemError, match=message):
            lm.packed(source, 2, lm.Bytes())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProblemError, match=r"expected \*.txt files in the folder"):
        lm.packed(tmp_path / "empty", 2, lm.Bytes())


# -- the loss of a row ------------------------------------------------------------------------------------------------------
def test_the_loss_is_the_mean_over_targets_after_the_shift():
    """Three tokens; probabilities written down, logits their logarithms."""
    p = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1 / 3, 1 / 3, 1 / 3]]])
    model = Fixed(p.log())
    cases = {(0, 1, 2): -(np.log(0.25) + np.log(0.1)) / 2, (1, -100, 1): -np.log(0.8), (2, 2, -100): -np.log(0.25)}
    for labels, wanted in cases.items():
        found = lm.token_loss(model, (torch.zeros(1, 3, dtype=torch.int64), torch.tensor([labels])))
        assert found.shape == (1,)
        assert found.item() == pytest.approx(wanted, rel=1e-6)


def test_a_row_without_targets_has_loss_0_and_gradient_0():
    model = Decoder()
    ids, labels = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, -100, -100], [4, 5, 6]])
    found = lm.token_loss(model, {"input_ids": ids, "labels": labels})
    assert found[0].item() == 0
    assert found[1].item() > 0
    (grad,) = torch.autograd.grad(found[0], [model.head.weight], retain_graph=True)
    assert not grad.any()
    (grad,) = torch.autograd.grad(found.mean(), [model.head.weight])
    assert grad.isfinite().all()


def test_losses_are_in_float32_at_least():
    ids = torch.tensor([[1, 2, 3]])
    assert lm.token_loss(Fixed(torch.randn(1, 3, 5).bfloat16()), (ids, ids)).dtype == torch.float32
    assert lm.token_loss(Decoder(dtype=torch.float64), (ids, ids)).dtype == torch.float64
    model = Decoder()
    full, mixed = (lm.token_loss(model, (ids, ids), precision) for precision in (lm.FullPrecision(), lm.MixedPrecision()))
    assert full.dtype == mixed.dtype == torch.float32
    assert 0 < (full - mixed).abs().item() < 0.05
    (grad,) = torch.autograd.grad(mixed.sum(), [model.head.weight])
    assert grad.dtype == model.head.weight.dtype == torch.float32


def test_the_mask_is_handed_on_where_there_is_one():
    model, row = Decoder(), lm.padded(["ab"], 5, lm.Bytes())[0]
    rows = {name: part[None] for name, part in row.items()}
    masked = lm.token_loss(model, rows)
    rows.pop("attention_mask")
    assert masked.equal(lm.token_loss(model, rows))
    assert model.masks[0].tolist() == [[1, 1, 1, 0, 0]]
    assert model.masks[1] is None


class NoLogits(Decoder):
    def forward(self, input_ids):
        return {"scores": 1}


IDS = torch.ones(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("model", "rows", "message"),
    [
        (Decoder(), IDS, "rows: expected a dict with input_ids and labels, or a tuple (ids, labels), got Tensor"),
        (Decoder(), {"input_ids": IDS}, "got a dict of ['input_ids']"),
        (
            Decoder(),
            (IDS, IDS[:1]),
            "rows: labels: expected integers of shape (n, length >= 2) like input_ids, got torch.int64 of",
        ),
        (Decoder(), (IDS.float(), IDS), "rows: input_ids: expected integers"),
        (Decoder(), (IDS[:, :1], IDS[:, :1]), "rows: input_ids: expected integers of shape (n, length >= 2)"),
        (Decoder(), (IDS, [1]), "rows: labels: expected integers of shape (n, length >= 2) like input_ids, got list"),
        (Decoder(), {"input_ids": IDS, "labels": IDS, "attention_mask": IDS[0]}, "rows: attention_mask: expected"),
        (NoLogits(), (IDS, IDS), "model: expected logits of shape (2, 3, 'vocabulary'), got dict"),
        (Fixed(torch.zeros(2, 3)), (IDS, IDS), "model: expected logits of shape (2, 3, 'vocabulary'), got shape (2, 3)"),
    ],
)
def test_rows_and_logits_that_do_not_fit_are_refused(model, rows, message):
    with pytest.raises(ProblemError) as caught:
        lm.token_loss(model, rows)
    assert message in str(caught.value)


# -- the problem ------------------------------------------------------------------------------------------------------------
TEXTS = {"prose": ["what is it that it was"] * 9, "noise": ["qzx kvj wq pfy", "jkq xz"] * 9, "mixed": ["what zqx is jvk it"] * 9}


def rows_of(texts, length=8):
    return lm.packed(texts, length, lm.Bytes())


def made(model=None, **changes):
    given = {"sources": {name: rows_of(texts) for name, texts in TEXTS.items()}, "trusted": rows_of(["it was that is"] * 4)}
    given |= {"size": 3, "trusted_size": 5} | changes
    return lm.language_problem(model or Decoder(), given.pop("sources"), given.pop("trusted"), **given)


def test_the_losses_of_the_sources_are_means_over_their_rows():
    model = Decoder()
    problem = made(model)
    rows, source = problem.lower_data.draw(0, 1, 0)
    assert rows["input_ids"].shape == (9, 8)
    found = problem.lower.losses(model, (rows, source))
    for i, name in enumerate(problem.lower_data.names):
        each = []
        for row in range(9):
            if int(source[row]) == i:
                ids = rows["input_ids"][row]
                each.append(F.cross_entropy(model(ids[None])[0, :-1], ids[1:]))
        assert len(each) == 3
        assert name == sorted(TEXTS)[i]
        torch.testing.assert_close(found[i], torch.stack(each).mean())
    x = torch.tensor([0.3, -1.0, 2.0])
    torch.testing.assert_close(problem.lower(x, model, (rows, source)), torch.softmax(x, 0) @ found)
    trusted = problem.upper_data.draw(0, 0, 0)
    assert len(trusted["input_ids"]) == 5
    torch.testing.assert_close(problem.upper(x, model, trusted), lm.token_loss(model, trusted).mean())


def test_the_problem_has_what_was_given():
    model = Decoder()
    problem = made(model, size={"prose": 1, "noise": 2, "mixed": 4}, trusted_size=None, precision=lm.MixedPrecision())
    assert problem.y.module is model
    assert problem.x.equal(torch.zeros(3))
    assert problem.lower_data.sizes == (4, 2, 1)  # mixed, noise, prose
    assert problem.upper_data.size == 4
    plain = made(model, size=4)
    batch = problem.lower_data.draw(0, 0, 0)
    assert float(problem.lower(problem.x, model, batch)) != float(plain.lower(plain.x, model, batch))


def test_a_run_moves_the_model_and_the_weights():
    torch.manual_seed(0)
    model = Decoder()
    before = model.head.weight.detach().clone()
    problem = made(model)
    solver = bilevel.ScaleBiO(inner=bilevel.AdamW(lr=1e-2), outer=bilevel.AdamW(lr=0.1))
    result = bilevel.solve(problem, solver, max_steps=40)
    weights = dict(zip(problem.lower_data.names, problem.lower.weights(result.x).tolist()))
    assert weights["prose"] > 0.6 > weights["noise"]
    assert result.module() is model
    assert not model.head.weight.equal(before)


def test_other_rows_than_ours_will_do():
    ids = torch.randint(0, V, (20, 6))
    problem = made(sources={"a": (ids, ids), "b": (ids, ids)}, trusted=(ids[:8], ids[:8]))
    rows, _ = problem.lower_data.draw(0, 1, 0)
    assert isinstance(rows, tuple)
    assert bilevel.solve(problem, bilevel.ScaleBiO(), max_steps=2).y


class Configured(Decoder):
    """With what models of transformers say about themselves."""

    def __init__(self, **config):
        super().__init__()
        self.config = type("Config", (), config)()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"sources": {}}, ProblemError, "sources: expected a dict of names and data"),
        ({"sources": {"a": ["text"] * 9}}, ProblemError, "sources: 'a': rows: expected a dict with input_ids and labels"),
        ({"trusted": ["text"] * 9}, ProblemError, "trusted: rows: expected a dict with input_ids and labels"),
        ({"trusted": 3}, ProblemError, "MiniBatches: expected tensors or a map-style Dataset, got int"),
        (
            {"sources": {"a": rows_of(TEXTS["prose"], 4), "b": rows_of(TEXTS["prose"], 5)}},
            ProblemError,
            "sources: expected rows of one length, got {'a': 4, 'b': 5}",
        ),
        ({"size": 100}, ProblemError, "SourceBatches: source"),
        ({"size": {"a": 3}}, ProblemError, "size: expected one for each of"),
        (
            {"precision": torch.bfloat16},
            ProblemError,
            "precision: expected FullPrecision() or MixedPrecision(), got torch.bfloat16",
        ),
        (
            {"model": Decoder(200)},
            ProblemError,
            "trusted: expected token ids below the model's vocabulary of 200, got 256",
        ),
        (
            {"model": Configured(max_position_embeddings=7)},
            ProblemError,
            "trusted: expected rows of at most 7 tokens, the model's positions, got 8",
        ),
        ({"model": Decoder().bfloat16()}, ProblemError, "expected trainable parameters in float32, got torch.bfloat16"),
        ({"model": Decoder().requires_grad_(False)}, ProblemError, "expected trainable parameters, got none"),
        ({"model": 3}, ProblemError, "Live: module: expected an nn.Module, got int"),
    ],
)
def test_bad_problems_are_refused(wrong, error, message):
    if "model" in wrong and isinstance(wrong["model"], Decoder):
        wrong["model"].get_input_embeddings = lambda: wrong["model"].table
    with pytest.raises(error) as caught:
        made(**wrong)
    assert message in str(caught.value)


def test_options_of_precision_are_checked():
    with pytest.raises(OptionError, match="MixedPrecision has no option 'dtype'"):
        lm.MixedPrecision(dtype=torch.float16)
    assert issubclass(OptionError, BilevelError)
