"""Causal language models of Hugging Face: load, save, adapters, activation checkpointing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from constrained.core.arguments import expect
from constrained.core.errors import OutputError, ProblemError, extra
from constrained.core.live import sharded
from constrained.core.options import Positive, Steps


def load_causal_lm(name: str | Path, *, dtype: torch.dtype = torch.float32, revision: str | None = None) -> torch.nn.Module:
    """A causal language model of `transformers`, from a folder or by its name on the hub, in eval mode.

    dtype: of all its parameters; float32 to train them, bfloat16 for the frozen ones below `lora`. revision: a commit of the hub.
    Weights are read from safetensors only, and no code that comes with a model is run.

    Raises MissingExtra without `transformers`, ProblemError for a folder without a model, a name that cannot be loaded, and files
    that are damaged or incomplete.

    >>> import tempfile
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> made = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=258, bos_token_id=256, eos_token_id=256))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(made, folder)
    ...     model = load_causal_lm(folder)  # or a name, such as "Qwen/Qwen2.5-0.5B"
    >>> torch.equal(model.lm_head.weight, made.lm_head.weight)
    True
    """
    transformers = extra("transformers", "hf")
    if not isinstance(name, (str, Path)):
        raise ProblemError(f"name: expected a folder or a name on the hub, got {type(name).__name__}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ProblemError(f"dtype: expected a floating-point torch.dtype, got {dtype!r}")
    if isinstance(name, Path) and not (name / "config.json").is_file():
        raise ProblemError(f"name: expected a folder with a model, its config.json and safetensors, got {name}")
    options: dict[str, Any] = {"dtype": dtype, "revision": revision, "trust_remote_code": False, "use_safetensors": True}
    try:
        model, found = transformers.AutoModelForCausalLM.from_pretrained(str(name), output_loading_info=True, **options)
    except Exception as cause:  # of transformers, safetensors or the hub, whatever is in the files
        raise ProblemError(f"name: {name} cannot be loaded: {_said(cause)}") from cause
    if missing := sorted(found["missing_keys"]):  # transformers would draw them
        raise ProblemError(f"name: {name} cannot be loaded: its files hold no {', '.join(missing[:3])}")
    return model.eval()


def _said(cause: Exception) -> str:
    """The first line of what was said, or else by what."""
    return next(iter(str(cause).strip().splitlines()), type(cause).__name__)


def save_model(model: torch.nn.Module, folder: str | Path) -> None:
    """Write a model as safetensors: what `load_causal_lm(folder)` reads; of a `lora` model the adapters, for `load_lora`.

    model: `result.module()`. A module that is not of `transformers` becomes `model.safetensors` with its parameters by name. Of
    several processes all must call, with sharded models as without: the first writes the whole, and none returns before it has.

    Raises MissingExtra without `safetensors`, OutputError for a folder that cannot be made or written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(torch.nn.Linear(2, 1), folder)
    ...     [path.name for path in Path(folder).iterdir()]
    ['model.safetensors']
    """
    safetensors = extra("safetensors.torch", "hf")
    if not isinstance(model, torch.nn.Module):
        raise ProblemError(f"model: expected an nn.Module, got {type(model).__name__}")
    state = None
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    elif sharded(model.parameters()):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    several = dist.is_available() and dist.is_initialized()
    try:
        if not several or dist.get_rank() == 0:
            _write(safetensors, model, Path(folder), state)
    finally:
        if several:
            dist.barrier()


def _write(safetensors: ModuleType, model: torch.nn.Module, folder: Path, state: dict[str, Any] | None) -> None:
    """state: of a sharded model, gathered."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as cause:  # ValueError: a name with a null character
        raise OutputError(f"folder: {folder} cannot be made: {getattr(cause, 'strerror', cause)}") from cause
    try:
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(folder, **({} if state is None else {"state_dict": state}))  # pyright: ignore[reportCallIssue]
        elif state is None:
            safetensors.save_model(model, str(folder / "model.safetensors"))
        else:
            safetensors.save_file(state, str(folder / "model.safetensors"))
    except (OSError, extra("safetensors", "hf").SafetensorError) as cause:
        raise OutputError(f"folder: {folder} cannot be written: {_said(cause)}") from cause


def lora(model: torch.nn.Module, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] | None = None) -> torch.nn.Module:
    """The model with low-rank adapters of `peft`, which alone are trainable: W + (alpha / rank) B A, B = 0 at the start.

    A is rank x inputs, drawn from torch's global generator, B outputs x rank. The base is frozen and belongs to both models that
    a solver of a `Live` variable moves: one copy of it in memory, and two of the adapters. targets: ends of the names of the
    layers that get adapters; by default what peft proposes for the kind of model. The given model is changed in place.

    Raises MissingExtra without `peft`, OptionError for a rank or alpha out of range, ProblemError for no targets, as in a kind
    of model that peft does not know, and a model that has adapters.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = lora(GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=258)), rank=4)
    >>> sum(p.numel() for p in model.parameters() if p.requires_grad)  # 2 layers, A of 4 x 16 and B of 48 x 4
    512

    Source: LoRA, arXiv 2106.09685.
    """
    peft = extra("peft", "hf")
    expect("rank", rank, Steps)
    expect("alpha", alpha, Positive)
    if not isinstance(model, torch.nn.Module) or hasattr(model, "peft_config"):
        got = "one with adapters" if isinstance(model, torch.nn.Module) else type(model).__name__
        raise ProblemError(f"model: expected an nn.Module without adapters, got {got}")
    if isinstance(targets, str) or not all(isinstance(target, str) for target in targets or ()):
        raise ProblemError(f"targets: expected a list of names, got {targets!r}")
    transposed = any(type(part).__name__ == "Conv1D" for part in model.modules())  # GPT-2's layers
    names = None if targets is None else list(targets)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, fan_in_fan_out=transposed, task_type="CAUSAL_LM")
    try:
        return peft.get_peft_model(model, config)
    except ValueError as cause:
        unknown = f"expected names of layers, since peft proposes none for {type(model).__name__}, got None"
        raise ProblemError(f"targets: {unknown if names is None else str(cause).splitlines()[0]}") from cause


def load_lora(model: torch.nn.Module, folder: str | Path) -> torch.nn.Module:
    """The model with the adapters that `save_model` wrote, trainable. The given model is changed in place.

    Raises MissingExtra without `peft`, ProblemError for a folder without adapters, with damaged ones or those of another
    model.

    >>> import copy, tempfile
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> base = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=258)).eval()
    >>> ids, kept = torch.arange(6)[None], copy.deepcopy(base)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = lora(base)
    ...     save_model(model, folder)
    ...     again = load_lora(kept, folder)
    >>> torch.equal(model(ids).logits, again(ids).logits)
    True
    """
    peft = extra("peft", "hf")
    if not (Path(folder) / "adapter_config.json").is_file():
        raise ProblemError(f"folder: expected one with adapter_config.json, got {folder}")
    try:
        found = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True)
        missing = sorted(set(peft.get_peft_model_state_dict(found)) - set(peft.load_peft_weights(str(folder), device="cpu")))
    except Exception as cause:  # of peft or safetensors, whatever is in the files
        raise ProblemError(f"folder: the adapters in {folder} do not fit the model: {_said(cause)}") from cause
    if missing:  # peft would leave them as they are drawn
        raise ProblemError(f"folder: the adapters in {folder} do not fit the model: they have no {', '.join(missing[:3])}")
    return found


def checkpointed(model: torch.nn.Module) -> torch.nn.Module:
    """The same model, now keeping only each block's input for the backward pass, which computes the block again.

    Memory of activations falls to about one block's, for one more forward pass. `transformers` does so in train mode only: the
    blocks are put in it, what is in them, dropout above all, stays as it is. Call it after `lora` and after `.eval()`, whose
    later use turns it off.

    Raises ProblemError for a model that has no checkpointing, or whose blocks would themselves drop out (OPT's do).

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = checkpointed(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=258)).eval())
    >>> model.training, model.transformer.h[0].training, model.transformer.h[0].mlp.training
    (False, True, False)

    Source: Chen et al., arXiv 1604.06174.
    """
    enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, "gradient_checkpointing_enable", None)
    if enable is None:
        raise ProblemError(f"model: expected one with gradient_checkpointing_enable(), got {type(model).__name__}")
    try:
        enable({"use_reentrant": False})  # the other kind stops at frozen embeddings
    except ValueError as cause:
        raise ProblemError(f"model: {cause}") from cause
    blocks = [part for part in model.modules() if getattr(part, "gradient_checkpointing", False)]
    for block in blocks:
        for name, value in vars(block).items():
            if "dropout" in name and isinstance(value, float) and value > 0 and not block.training:
                where = f"{type(block).__name__}.{name} = {value}"
                raise ProblemError(f"model: expected blocks that can be in train mode without dropout, got {where}: set it to 0")
    for block in blocks:
        block.training = True
    return model
