"""The example of a server, as a user runs it, with fewer customers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_server_answers_as_torch_does(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--customers", "5", "--requests", "10", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "examples/serve.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"10 requests of 5 customers, mixed: max\|d\| / max\|y\| to\s+torch = (\S+)", done.stdout)
    assert found, done.stdout
    assert float(found.group(1)) <= 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {"served.onnx", "base.onnx"}
