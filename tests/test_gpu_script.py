"""The GPU script runs end to end on the CPU at a small size, and its page is made from its JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def script(*words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "benchmarks/gpu.py", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_script_runs_at_a_small_size(tmp_path):
    found, page = tmp_path / "cpu.json", tmp_path / "page.md"
    script(
        "--device",
        "cpu",
        "--sizes",
        "0.2M",
        "--networks",
        "1e4",
        "--unknowns",
        "50",
        "--length",
        "32",
        "--rounds",
        "1",
        "--json",
        str(found),
    )
    rows = json.loads(found.read_text())
    assert [row["kind"] for row in rows["training"]] == ["plain", "all", "lisa", "lora"]
    assert all(row["seconds"] > 0 for row in rows["training"])
    for row in rows["training"][1:]:
        assert abs(row["peak"] / row["report"] - 1) <= 0.1
    assert rows["products"][0]["product"] > 0
    assert rows["kkt"][0]["gain"] > 0
    script("--from", str(found), "--page", str(page))
    text = page.read_text()
    assert all(f"| {kind} |" in text for kind in ("plain", "all", "lisa", "lora"))
    assert "does not fit" not in text
