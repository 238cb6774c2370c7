"""The guard of bits: digests of what every case of `cases.py` ends with, to compare before and after a change that moves code.

    export PYTHONPATH=.:tests:tests/helpers
    python tests/bits.py write before.json        run every case and store its digests
    python tests/bits.py compare before.json      run again; name what differs, exit status 1 if anything does

One thread, seeded. The digests hold on the machine that wrote them: other kernels round in another way. Three a case: the
answer (x, y, multipliers, status, steps), the calls, and the last state with the names of its fields.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case
from harness import run

from constrained.core.vec import leaves_by_path


def digest(tree: Any) -> str:
    """SHA-256 over every leaf's path and bytes, or its text where it is no tensor."""
    found = hashlib.sha256()
    for path, leaf in leaves_by_path(tree).items():
        found.update(path.encode())
        if isinstance(leaf, torch.Tensor):
            found.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            found.update(leaf.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(leaf.name if isinstance(leaf, enum.Enum) else leaf).encode())
    return found.hexdigest()[:16]


def digests(case: Case) -> dict[str, str]:
    """What a full run of a case ends with; of a slow one, a run of a few steps."""
    result = run(case, full=not case.slow)
    many = result.multipliers
    answer = result.x, result.y, many and dataclasses.astuple(many), result.status.name, result.steps
    return {"answer": digest(answer), "calls": digest(result.calls.as_dict()), "state": digest(result.state)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("write", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case for case in CASES if not case.needs or find_spec(case.needs)]
    found = {case.name: digests(case) for case in cases if options.only in case.name}
    if options.what == "write":
        options.file.write_text(json.dumps(found, indent=1))
        print(f"{len(found)} cases written")
        return 0
    saved = json.loads(options.file.read_text())
    changed = 0
    for name in found:
        kinds = [kind for kind in found[name] if saved.get(name, {}).get(kind) != found[name][kind]]
        changed += bool(kinds)
        if kinds:
            print(f"{name}: {', '.join(kinds)} differ")
    print(f"{len(found)} cases, {changed} differ")
    return int(changed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
