"""Fixtures and settings that every test shares."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Odonata must work where torchvision is absent or broken, and transformers (an oracle) must not try to import it.
sys.modules["torchvision"] = None  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that may stand beside the project; tests that need it are skipped where it is absent."""
    path = Path(os.environ.get("ODONATA_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"the shared data folder {path} is absent")
    return path
