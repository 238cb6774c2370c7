"""Ours beside hypertorch, TorchOpt, JAXopt, BOAT and Betty: the way to a solution, one hypergradient, hyper-cleaning.

    make peers [HYPERTORCH=CHECKOUT] [BETTY=CHECKOUT]
    python benchmarks/bilevel_peers.py [--only search accuracy cleaning] [--repeats 3] [--cap 60] [--seeds 1] [--json FILE]

All in one process, float64, one thread, CPU seconds, the least of the repeats. jit compilation is not in them: "set-up", and
"first" of `accuracy`, are the making of a side and its first call. Ratios are to the first row, of `accuracy` to the first of
each accuracy.

accuracy   one hypergradient at a fixed x from y = 0. Each side has a ladder of settings from coarse to fine (peers/with_*.py);
           the first that reaches the asked error is timed. Then what its defaults, README or examples give, and what it says.
search     65 log-penalties, to 90, 99 and 99.9 % of the gap. Peers give hypergradients only: Adam with three learning rates, of
           which the best is shown ("tried" is all three, the later ones stopped at the best's time), and scipy's L-BFGS-B are put
           around each, y kept from call to call. Their settings: a cheap one as in their examples (Adam), then those with an
           error of 1e-3 (Adam) and 1e-5 (L-BFGS-B) at x = -4 from y = 0. Every run ends after --cap seconds. Ours: `Implicit()`,
           and `problem.value` in the same loops. --deep: on to 99.9999 %.
cleaning   hyper-cleaning, linear: the same 30 steps of ScalarAdam for all; `Penalty` solves its surrogate with them.

Who solves the lower level: JAXopt its own L-BFGS; BOAT and Betty SGD with momentum 0.9 for a number of steps, in their own
loops; hypertorch and TorchOpt leave it to the user, who has torch.optim.LBFGS here.

From PyPI: all but hypertorch, whose name there belongs to another project; it needs a checkout of
github.com/prolearner/hypertorch. Betty's ladder is its Neumann series, since the cg of 0.1.1, the last on PyPI, does not
converge; with --betty, a checkout of github.com/leopard-ai/betty, it is cg. BOAT's pins (numpy < 2, torchvision) and Betty's
malformed ones are passed over by pip's --no-deps.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from peers import with_jax, with_loops, with_torch
from peers.accuracy import accuracy
from peers.clean import clean
from peers.search import search
from peers.side import Peer, absent
from peers.task import penalties
from rich.console import Console
from threadpoolctl import threadpool_limits

WIDTH = 160
NOT_ON_PYPI = "not on PyPI (the name there is another project's): --hypertorch CHECKOUT"


def hypertorch(folder: Path | None) -> Peer:
    if folder is None:
        return absent("hypertorch", NOT_ON_PYPI)
    sys.path.append(str(folder))
    import hypergrad  # pyright: ignore[reportMissingImports]

    return with_torch.hypertorch(hypergrad)


def betty(folder: Path | None) -> Peer:
    if folder is not None:
        sys.path.insert(0, str(folder))
    return with_loops.betty(released=folder is None)


def present(name: str, make: Callable[[], Peer]) -> Peer:
    try:
        return make()
    except ImportError as why:
        return absent(name, why)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--only", nargs="+", choices=("accuracy", "search", "cleaning"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cap", type=float, default=60.0, help="seconds of one run of `search`")
    parser.add_argument("--deep", action="store_true", help="`search` to 99.9999 %%")
    parser.add_argument("--sides", nargs="+", default=[], help="peers to run, all without it")
    parser.add_argument("--seeds", type=int, default=1, help="of `cleaning`, from 100 on")
    parser.add_argument("--hypertorch", type=Path, help="a checkout")
    parser.add_argument("--betty", type=Path, help="a checkout, in place of the one on PyPI")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1, user_api="blas")
    warnings.simplefilter("ignore")  # the peers' deprecations
    console, task = Console(width=WIDTH), penalties()
    peers = [
        with_torch.ours(),
        present("hypertorch", lambda: hypertorch(args.hypertorch)),
        present("torchopt", with_torch.torchopt),
        present("jaxopt", with_jax.jaxopt),
        present("boat-torch", with_loops.boat),
        present("betty-ml", lambda: betty(args.betty)),
    ]
    peers = [peer for peer in peers if not args.sides or peer.name in (*args.sides, "bilevel")]
    tables: dict[str, Callable[[], Any]] = {
        "accuracy": lambda: accuracy([peers[0], with_torch.ours(own=True), *peers[1:]], task, args.repeats, console),
        "search": lambda: search(peers, task, args.repeats, args.cap, args.deep, console),
        "cleaning": lambda: clean(peers, 100, args.seeds, args.repeats, console),
    }
    found: dict[str, Any] = {"torch": torch.__version__, "versions": {p.name: p.version or p.missing for p in peers}}
    for name in args.only or tables:
        found[name] = tables[name]()
        if args.json is not None:
            args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
