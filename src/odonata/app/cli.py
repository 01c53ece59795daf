"""The command line. No torch here: `odonata --help` answers at once, and a command imports what it needs."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from odonata.errors import OdonataError

COMMANDS = {
    "list": ("odonata.app.commands.show:list_methods", "what there is, with the five marks of each method"),
    "show": (
        "odonata.app.commands.show:show",
        "one method or backbone: what it is, its marks, recipe and claims, or its size and cost",
    ),
    "train": ("odonata.app.commands.train:train", "train a method, or a saved recipe, on your data"),
    "resume": ("odonata.app.commands.train:resume", "go on with a run that was stopped or killed"),
    "doctor": ("odonata.app.commands.doctor:doctor", "what is wrong with a run, and what to do about it"),
    "explain": (
        "odonata.app.commands.explain:explain",
        "a method's options and equations, and how its defaults differ from the paper's",
    ),
    "compare": ("odonata.app.commands.compare:compare", "runs side by side: what differs, and what came out"),
    "evaluate": (
        "odonata.app.commands.evaluate:evaluate",
        "measure a run or weights: retrieval, zero-shot, kNN, probes, fine-tuning",
    ),
    "predict": ("odonata.app.commands.predict:predict", "what a model says of pictures"),
    "generate": ("odonata.app.commands.generate:generate", "what a language model makes of prompts"),
    "chat": ("odonata.app.commands.chat:chat", "a conversation with a language model"),
    "embed": ("odonata.app.commands.search:embed", "pictures to vectors on disk"),
    "search": (
        "odonata.app.commands.search:search",
        "find pictures by words or by a picture; or answers of a language model, with more compute",
    ),
    "features": (
        "odonata.app.commands.features:features",
        "what a tower sees, layer by layer, as numbers and pictures",
    ),
    "filter": ("odonata.app.commands.filter:filter_pairs", "keep the best part of a set of pairs (DFN)"),
    "check-data": ("odonata.app.commands.check_data:check_data", "what is wrong with a data set, before training"),
    "convert-data": (
        "odonata.app.commands.convert_data:convert_data",
        "pictures with objects between COCO, VOC and YOLO",
    ),
    "convert": ("odonata.app.commands.convert:convert", "weights between published layouts and ours"),
    "export": ("odonata.app.commands.export:export", "a detector or segmenter as an ONNX file, checked"),
    "claim": ("odonata.app.commands.claim:claim", "the papers' claims as experiments: list, run, report"),
    "report": ("odonata.app.commands.report:report", "write a run's report page anew"),
}
"""Command → where it is and what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0 done, 1 stopped by an error of ours, 2 by something to mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        import odonata

        print(f"odonata {odonata.__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 2)
        hint = f"did you mean {' or '.join(near)}?" if near else "see odonata --help"
        return _fail(f"no command {name!r}; {hint}")
    module, _, function = COMMANDS[name][0].partition(":")
    try:
        return int(getattr(importlib.import_module(module), function)(rest) or 0)
    except OdonataError as error:
        return _fail(str(error))
    except RuntimeError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "closed by peer" not in str(error):
            raise
        return 1  # another rank has failed, and says why
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a folder that is a file, a disk that is full: the system's own words say it best
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))


def usage() -> str:
    """Return the help text."""
    lines = [f"  {name:<12} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: odonata COMMAND [options]",
            "",
            "Landmark methods of visual and multimodal learning: train, use, trust, convert and question them.",
            "",
            *lines,
            "",
            "`odonata COMMAND --help` tells more; `odonata train NAME --help` lists every option of a recipe.",
        ]
    )


def _fail(message: str, status: int = 2) -> int:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from odonata.engine.distributed import report_failure

        if report_failure(message):
            return status
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"odonata: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    ended = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Sharding keeps gloo's threads alive to the end; about one rank in twenty is aborted by them as Python leaves.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended)
    sys.exit(ended)
