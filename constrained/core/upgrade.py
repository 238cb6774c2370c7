"""Headers of checkpoints that 0.1.0 wrote, as this version would write them."""

from __future__ import annotations

import json
import re

RENAMED = {"Estimated": "EstimatedAccuracy", "Paper": "PaperAccuracy"}  # classes of options
DROPPED = r"(\bAutoLinear\([^()]*), measure=(?:True|False)"  # options that are no more
LBFGS_BY_DEFAULT = "LBFGS(memory=20, first=1.0)"  # AugmentedLagrangian.inner


def upgraded(header: str) -> str:
    """The JSON text of a header with the present names of options' classes, and of the solver that its options make now."""
    found = json.loads(_renamed(header))
    solver = found.get("run", {}).get("solver", {})
    if "Adam" in solver.get("Penalty", {}).get("outer", ""):
        found["run"]["solver"] = {"PenaltyDescent": solver["Penalty"]}
    if solver.get("AugmentedLagrangian", {}).get("inner") == LBFGS_BY_DEFAULT:
        solver["AugmentedLagrangian"]["inner"] = "None"  # which is the same method
    return json.dumps(found)


def _renamed(header: str) -> str:
    """With the present names, without the options that are no more."""
    header = re.sub(DROPPED, r"\1", header)
    return re.sub(rf"\b({'|'.join(RENAMED)})(?=\()", lambda old: RENAMED[old[1]], header)
