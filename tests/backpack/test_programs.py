"""ViViT's programs run with only their import lines changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MATCHES = {
    "directional_derivatives.py": [
        "1ˢᵗ-order directional derivatives match!",
        "2ⁿᵈ-order directional derivatives match!",
        "Averaged 2ⁿᵈ-order directional derivatives match eigenvalues!",
    ],
    "empirical_ntk.py": ["NTK from functorch and vivit match!"],
}


@pytest.mark.parametrize("name", MATCHES)
def test_program(name: str) -> None:
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for line in MATCHES[name]:
        assert line in done.stdout
