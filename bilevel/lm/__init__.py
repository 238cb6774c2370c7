"""Language models in a bilevel problem: which sources of text to train on, judged by trusted text.

    lower  g(x, y) = sum_i p_i(x) l_i(y)    l_i: mean token loss on source i, p = softmax(x)
    upper  f(x, y) = token loss on trusted text

For Hugging Face's causal models and any module whose `forward(input_ids=..., attention_mask=...)` gives logits, as a tensor or as
`.logits`. `transformers`, `safetensors` and `peft` are needed only by what loads, saves and adapts: `pip install 'bilevel[hf]'`.
"""

from .losses import FullPrecision, MixedPrecision, Precision, mixture, token_loss, upper
from .models import checkpointed, load_causal_lm, load_lora, lora, save_model
from .reweighting import language_problem
from .rows import Packed, Padded, packed, padded
from .tokens import Bytes, Tokenizer

__all__ = [
    "Bytes",
    "FullPrecision",
    "MixedPrecision",
    "Packed",
    "Padded",
    "Precision",
    "Tokenizer",
    "checkpointed",
    "language_problem",
    "load_causal_lm",
    "load_lora",
    "lora",
    "mixture",
    "packed",
    "padded",
    "save_model",
    "token_loss",
    "upper",
]
