"""Fixtures and settings that every test shares, and the record of what the tests show of each method."""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Odonata must work where torchvision is absent or broken, and transformers (an oracle) must not try to import it.
sys.modules["torchvision"] = None  # type: ignore[assignment]
sys.path.insert(0, str(Path(__file__).parent))

# The shapes in annotations are true: they are checked in every call that the tests make of these modules.
install_import_hook(
    [
        "odonata.backbones",
        "odonata.nn.attention",
        "odonata.nn.transformer",
        "odonata.nn.pooling",
        "odonata.nn.patches",
        "odonata.align.dual_encoder",
        "odonata.align.text_tower",
    ],
    "beartype.beartype",
)

RECORD = Path(__file__).resolve().parents[1] / "src/odonata/app/recorded/marks.json"


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


def pytest_addoption(parser):
    parser.addoption(
        "--record-marks", action="store_true", help="write what passed into the marks that `odonata list` shows"
    )
    parser.addoption("--verify-marks", action="store_true", help="fail if a recorded mark is not shown by this run")


def pytest_configure(config):
    config.addinivalue_line("markers", "shows(method, mark): a passing test that shows this mark of the method")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    report.shows = [list(mark.args) for mark in item.iter_markers("shows")]  # travels to the main process under xdist


class MarkRecorder:
    """Collects which marks were shown (all their tests passed) and which were not."""

    def __init__(self):
        self.passed, self.failed = defaultdict(set), defaultdict(set)

    def pytest_runtest_logreport(self, report):
        for method, mark in getattr(report, "shows", []):
            name = report.nodeid.split("[")[0]
            if report.failed:
                self.failed[method, mark].add(name)
            elif report.when == "call" and report.passed:
                self.passed[method, mark].add(name)

    def shown(self):
        marks = defaultdict(dict)
        for (method, mark), names in sorted(self.passed.items()):
            if not self.failed[method, mark]:
                marks[method][mark] = sorted(names)
        return dict(marks)


def pytest_sessionstart(session):
    session.config.pluginmanager.register(MarkRecorder(), "mark-recorder")


def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workerinput"):
        return
    recorder = session.config.pluginmanager.get_plugin("mark-recorder")
    shown = recorder.shown()
    if session.config.getoption("--record-marks"):
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(shown, indent=1, sort_keys=True) + "\n")
    if session.config.getoption("--verify-marks"):
        recorded = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
        unshown = [f"{m}: {k}" for m, marks in recorded.items() for k in marks if k not in shown.get(m, {})]
        if unshown:
            print(f"\nrecorded marks that this run does not show: {', '.join(unshown)}")
            session.exitstatus = 1
