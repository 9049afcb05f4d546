"""What the tests with the real img2dataset share: its environment."""

from pathlib import Path

import pytest

from tests.helpers.processes import finished
from tests.helpers.repo import ROOT


@pytest.fixture(scope="session")
def dataset_env() -> Path:
    done = finished(["make", "dataset-env"])
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / ".dataset-env"
