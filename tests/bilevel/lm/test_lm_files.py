"""Damaged files of models, adapters and tokens: each is refused in the library's own words."""

import copy

import numpy as np
import pytest

from bilevel import OutputError, ProblemError, lm

transformers = pytest.importorskip("transformers")
CONFIG = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 258, "bos_token_id": 256, "eos_token_id": 256}


def made():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**CONFIG)).eval()


def cut(name, keep):
    def damage(folder):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:keep])

    return damage


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def without_a_tensor(name):
    def damage(folder):
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / name)
        tensors.pop(next(key for key in sorted(tensors) if "c_attn" in key))
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return damage


WEIGHTS, ADAPTERS = "model.safetensors", "adapter_model.safetensors"
MODELS = {
    "half a header": cut(WEIGHTS, 1000),
    "half the weights": cut(WEIGHTS, -100),
    "empty": cut(WEIGHTS, 0),
    "no safetensors": written(WEIGHTS, b"x" * 500),
    "a tensor too few": without_a_tensor(WEIGHTS),
    "no JSON": written("config.json", b"{"),
    "a list": written("config.json", b"[]"),
    "no text": written("config.json", b"\xff\xfe\x00"),
    "many digits": written("config.json", b'{"model_type": "gpt2", "n_embd": ' + b"9" * 5000 + b"}"),
}


@pytest.mark.parametrize("damage", MODELS.values(), ids=MODELS)
def test_a_damaged_model_is_refused(damage, tmp_path):
    lm.save_model(made(), tmp_path)
    damage(tmp_path)
    with pytest.raises(ProblemError, match=r"^name: .* cannot be loaded: "):
        lm.load_causal_lm(tmp_path)


LORA = {
    "half": cut(ADAPTERS, 200),
    "a tensor too few": without_a_tensor(ADAPTERS),
    "no JSON": written("adapter_config.json", b"{"),
    "a list": written("adapter_config.json", b"[]"),
}


@pytest.mark.parametrize("damage", LORA.values(), ids=LORA)
def test_damaged_adapters_are_refused(damage, tmp_path):
    pytest.importorskip("peft")
    base = made()
    lm.save_model(lm.lora(copy.deepcopy(base)), tmp_path)
    damage(tmp_path)
    with pytest.raises(ProblemError, match=r"^folder: the adapters in"):
        lm.load_lora(base, tmp_path)


def test_odd_places_of_models_are_refused(tmp_path):
    for name in ("a\0b", "x" * 5000, ""):
        with pytest.raises(ProblemError, match=r"^name: "):
            lm.load_causal_lm(name)
    (tmp_path / WEIGHTS).mkdir()
    for folder in ("a\0b", tmp_path / ("x" * 5000), tmp_path):
        with pytest.raises(OutputError, match=r"^folder: "):
            lm.save_model(made(), folder)


def test_damaged_tokens_are_refused(tmp_path):
    np.save(tmp_path / "whole.npy", np.arange(50))
    np.savez(tmp_path / "archive.npz", a=np.arange(50))
    whole = (tmp_path / "whole.npy").read_bytes()
    contents = {"empty": b"", "half": whole[:140], "archive": (tmp_path / "archive.npz").read_bytes(), "torn": b"PK\x03\x04"}
    for name, content in contents.items():
        (tmp_path / f"{name}.npy").write_bytes(content)
        with pytest.raises(ProblemError, match=r"^packed: source: .*\.npy"):
            lm.packed(tmp_path / f"{name}.npy", 8, lm.Bytes())


def test_odd_places_of_texts_are_refused(tmp_path):
    for path in (tmp_path / "a\0b", tmp_path / ("x" * 5000), tmp_path / "none"):
        with pytest.raises(ProblemError, match=r"^packed: source: .* cannot be read"):
            lm.packed(path, 8, lm.Bytes())
