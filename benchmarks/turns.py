"""Contestants of a benchmark: processes of their own, each with its environment, that are measured in turn.

The parent starts every contestant, lets it load its model, and then asks them one after the other for a round, several
times over: a machine that is busy for a while is busy for all of them. Each is held to the same cores.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent.parent / ".peers" / "bin" / "python"


class Contestant:
    """A running process that does a round when asked.

    Args:
        name: what the table calls it.
        python: the interpreter of its environment.
        arguments: what follows it: the script, and what tells the script that it is a contestant.
        threads: cores and threads that it may use.
    """

    def __init__(self, name: str, python: str | Path, arguments: list[str], threads: int) -> None:
        cores = sorted(os.sched_getaffinity(0))[-threads:] if hasattr(os, "sched_getaffinity") else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "CORES": json.dumps(cores)}
        self.name, self.seconds = name, float("inf")
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the process fails
        self._process = subprocess.Popen(
            [str(python), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=environment,
        )  # fmt: skip
        self.about = self._read()

    def round(self) -> dict[str, Any]:
        """Do one round; keep its time if it is the best so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        found = self._read()
        self.seconds = min(self.seconds, found["seconds"])
        return found

    def leave(self) -> None:
        """End the process."""
        self._process.communicate()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise SystemExit(f"{self.name} failed:\n{self._log.read()[-3000:]}")
        return json.loads(line)


def serve(prepare: Callable[[], tuple[dict[str, Any], Callable[[], dict[str, Any]]]]) -> None:
    """Be a contestant: say what `prepare` tells of itself, then do its round whenever asked."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    if cores := json.loads(os.environ.get("CORES", "[]")):
        os.sched_setaffinity(0, cores)
    about, round_ = prepare()
    print(json.dumps(about), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(round_()), file=answers, flush=True)


def require_peers() -> None:
    """Stop with what to do where the peers' environment is absent."""
    if not PEERS.is_file():
        raise SystemExit("the peers are not installed: run `sh benchmarks/peers.sh` (see benchmarks/README.md)")


def clip_folders(folder: Path, merges: Path) -> None:
    """Write one randomly initialised CLIP ViT-B/16 in the layouts of Odonata, open_clip and transformers.

    Args:
        folder: gets the folders `odonata`, `open_clip` and `hf`.
        merges: `bpe_simple_vocab_16e6.txt.gz`.
    """
    import torch

    from odonata.align.assets import Assets
    from odonata.align.convert import convert
    from odonata.align.dual_encoder import DualEncoder
    from odonata.align.dual_encoder_variants import VARIANTS
    from odonata.align.predictor import TwoTowerPredictor
    from odonata.data.preprocess import CLIP
    from odonata.text.families import clip_tokenizer

    torch.manual_seed(0)
    config = VARIANTS["ViT-B-16"]
    predictor = TwoTowerPredictor(
        DualEncoder(config), Assets(config, CLIP, clip_tokenizer(merges)), "random", torch.device("cpu")
    )
    for layout in ("odonata", "open_clip", "hf"):
        convert(predictor, folder / layout, layout)


def open_clip_merges() -> Path:
    """Return the file of CLIP's merges that open_clip brings."""
    return next(PEERS.parent.parent.glob("lib/python*/site-packages/open_clip/bpe_simple_vocab_16e6.txt.gz"))


def print_table(contestants: list[Contestant], unit: str, count: int, agreement: dict[str, str]) -> None:
    """Print the best time of each, as a multiple of the first one's too."""
    width = max(len(c.name) for c in contestants) + 2
    print(f"{'':{width}}{'seconds':>9}{unit + '/s':>12}{'time / ours':>13}  agreement with ours")
    for c in contestants:
        ratio = c.seconds / contestants[0].seconds
        print(f"{c.name:{width}}{c.seconds:9.2f}{count / c.seconds:12.1f}{ratio:13.2f}  {agreement.get(c.name, '')}")
