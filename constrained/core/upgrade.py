"""Headers of checkpoints that 0.1.0 wrote, as this version would write them."""

from __future__ import annotations

import re

RENAMED = {"Estimated": "EstimatedAccuracy", "Paper": "PaperAccuracy"}  # classes of options


def upgraded(header: str) -> str:
    """The JSON text of a header with the present names of options' classes."""
    return re.sub(rf"\b({'|'.join(RENAMED)})(?=\()", lambda old: RENAMED[old[1]], header)
