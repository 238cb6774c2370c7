"""What the texts of the command line mean: literals, objects by their names in kebab-case, or themselves."""

import pytest

from bilevel import LISA, Cyclic
from constrained.core.errors import OptionError
from constrained.core.optimizers import SGD, AdamW, ScalarAdam
from constrained.core.options import Cosine, Power
from constrained.descent import LBFGS, SPG, ProjectedLBFGS
from problems.cli.words import OBJECTS, pairs, value

NEEDY = ("cosine", "fixed-point", "power", "reviews", "sentiment140", "snli")  # these need an argument


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        *(("1", 1), ("-2", -2), ("1e-3", 1e-3), ("None", None), ("True", True), ("(0.9, 0.99)", (0.9, 0.99)), ("[1, 2]", [1, 2])),
        *(("mlp", "mlp"), ("'mlp'", "mlp"), ("", ""), ("power-law", "power-law"), ("unknown(1)", "unknown(1)")),
        *(("scalar-adam", ScalarAdam()), ("scalar-adam(lr=0.5)", ScalarAdam(lr=0.5)), (" adamw() ", AdamW())),
        *(("sgd(lr=1)", SGD(lr=1)), ("spg", SPG()), ("lbfgs(memory=3)", LBFGS(memory=3)), ("projected-lbfgs", ProjectedLBFGS())),
        *(("power(0.3, 0.5)", Power(0.3, 0.5)), ("power(scale=0.3, exponent=0.5)", Power(0.3, 0.5))),
        *(("cosine(0.01, steps=100)", Cosine(0.01, steps=100)), ("lisa(layers=1)", LISA(layers=1)), ("cyclic", Cyclic())),
        ("scalar-adam(lr=power(0.1, 0.5), betas=(0.0, 0.99))", ScalarAdam(lr=Power(0.1, 0.5), betas=(0.0, 0.99))),
    ],
)
def test_texts_are_literals_objects_or_themselves(text, wanted):
    assert value(text) == wanted
    assert type(value(text)) is type(wanted)


@pytest.mark.parametrize("name", [name for name in OBJECTS if name not in NEEDY])
def test_objects_go_by_their_names_in_kebab_case(name):
    assert type(value(name)).__name__.lower() == name.replace("-", "")


@pytest.mark.parametrize("text", ["power", "power(1)", "power(**{})", "scalar-adam(0.1, 0.2)", "power(1, 2, 3)", "power(1,, 2)"])
def test_objects_that_cannot_be_made_are_refused(text):
    with pytest.raises(OptionError) as caught:
        value(text)
    assert text in str(caught.value)


def test_pairs():
    assert pairs(["a=1", "max-outer=2", "name=x=y", "none=None"], "--set") == {
        "a": 1,
        "max_outer": 2,
        "name": "x=y",
        "none": None,
    }
    for word in ("a", "=1", ""):
        with pytest.raises(OptionError, match="--set"):
            pairs([word], "--set")
