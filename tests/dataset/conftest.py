"""What the tests with the real img2dataset share: its environment."""

import subprocess
from pathlib import Path

import pytest

from tests.helpers.repo import ROOT


@pytest.fixture(scope="session")
def dataset_env() -> Path:
    done = subprocess.run(
        ["make", "dataset-env"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / ".dataset-env"
