"""The demo, as ``make demo`` runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_demo_holds_its_claims(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "sites read / called / layers present: 50 / 50 / 50",
        "of them depthwise: 16",
        "logits bit-identical to the base's: True",
        "weights and running statistics of the base unmoved: True",
        "strip gives the base back, logits bit-identical: True",
    ):
        assert line in done.stdout
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    assert (tmp_path / "efficientnet_lite0_digits.onnx").stat().st_size > 1_000_000
