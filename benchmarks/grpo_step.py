"""Seconds of a GRPO step against TRL: 16 prompts, 8 answers to each, from prompts to updated weights, on one core.

    python benchmarks/grpo_step.py --trl OTHER/bin/python   # against TRL 1.16, from an environment that has it
    python benchmarks/grpo_step.py                          # ours alone
    python benchmarks/grpo_step.py --quick                  # a narrower model, two rounds

Both begin with one randomly initialised Qwen2 (width 256, 4 layers, 14 tokens; `--width`, `--layers`), read from one
directory, and do the same: sample at temperature 1, count the threes of each answer, compare within groups of 8, and
make one clipped update of all answers alike (TRL's default loss, `dapo`; no divergence) with AdamW at 1e-6. Answers end
by chance after 14 tokens in the mean, so most are far shorter than the limit. Which tokens are drawn differs; the mean
length and the mean entropy of the contestants must agree to 15 % and 2 %, or the run fails.

Contestants are processes of their own that do a step in turn (`turns.py`). The time is the CPU time of the best step
and of the median one. Ours sorts the answers by length into micro-batches, which changes no gradient. TRL updates on
all 128 at once; `--trl-accumulate 4` gives it micro-batches, which do not help, for it does not sort.
"""

import argparse
import json
import queue
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from turns import Contestant, serve

PROMPTS, GROUP, VOCABULARY = 16, 8, "_$0123456789=#"
SAME = {"length": 0.15, "entropy": 0.02}
"""Relative differences that chance explains."""


def write_model(folder: Path, width: int, layers: int) -> None:
    """Write the model, and the prompts."""
    import torch

    from odonata.language.assets import DecoderAssets
    from odonata.language.decoder import Decoder, DecoderConfig
    from odonata.language.language_model import published_files
    from odonata.text.text_tokenizer import characters
    from odonata.weights.published import write_folder

    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=len(VOCABULARY), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, head_dim=width // 4, intermediate_size=width * 8 // 3 // 16 * 16,
        max_position_embeddings=512, qkv_bias=True,
    )  # fmt: skip
    assets = DecoderAssets(config, characters(VOCABULARY[2:]))
    write_folder(folder / "model", published_files(Decoder(config).state_dict(), assets))
    draw = torch.randint(0, 10, (4 * PROMPTS, 6), generator=torch.Generator().manual_seed(1)).tolist()
    (folder / "prompts.json").write_text(json.dumps(["".join(map(str, digits)) + "=" for digits in draw]))


def ours(folder: Path, limit: int, accumulate: int) -> tuple[dict[str, Any], Any]:
    """Return a round of ours."""
    import torch

    from odonata.engine.distributed import World
    from odonata.engine.fit import Engine
    from odonata.engine.recipe import AdamW, Clip, Recipe, Schedule
    from odonata.engine.task import Task
    from odonata.language.language_model import open_model
    from odonata.language.sampling import Sampling
    from odonata.posttrain.grpo import GRPO, GRPOOptions
    from odonata.posttrain.questions import PromptItem
    from odonata.posttrain.rollout import Asking

    class Threes:
        name = "threes"

        def __call__(self, answers):
            return [float(answer.completion.count("3")) for answer in answers]

    decoder, assets, _ = open_model(folder / "model")
    asking = Asking(assets.tokenizer, [Threes()], [1.0], GROUP, limit, Sampling(), 0)
    method = GRPO(decoder, GRPOOptions(aggregation="token", beta=0.0, max_new_tokens=limit), asking, None)
    recipe = Recipe(
        "grpo", None, None, None, optim=AdamW(lr=1e-6, weight_decay=0.0), schedule=Schedule("constant", warmup=0.0),
        clip=Clip("norm", 1.0), accumulate=accumulate, device="cpu",
    )  # fmt: skip
    engine = Engine(recipe, Task(method, None, 1, ""), None, World(0, 1, torch.device("cpu")))
    method.train()
    prompts, state = json.loads((folder / "prompts.json").read_text()), {"visit": 0}

    def step() -> dict[str, float]:
        state["visit"] += 1
        chosen = [prompts[(state["visit"] * PROMPTS + i) % len(prompts)] for i in range(PROMPTS)]
        began = time.process_time()
        items = [
            PromptItem(tuple(assets.tokenizer.encode(text)), text, {}, 1000 * state["visit"] + i)
            for i, text in enumerate(chosen)
        ]
        values = method.step(items, engine)
        seconds = time.process_time() - began
        return {"seconds": seconds, "length": float(values["length"]), "entropy": float(values["entropy"])}

    return {"version": ""}, step


def trl(folder: Path, limit: int, accumulate: int) -> tuple[dict[str, Any], Any]:
    """Return a round of TRL's trainer, which runs in a thread and stops before each step until it is asked."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.manual_seed(0)
    asked: queue.Queue[str] = queue.Queue()
    done: queue.Queue[float] = queue.Queue()

    class Turns(TrainerCallback):
        def on_step_begin(self, *_, **__):
            asked.get()
            self.began = time.process_time()

        def on_step_end(self, *_, **__):
            done.put(time.process_time() - self.began)

    def threes(completions, **_):
        return [float(completion.count("3")) for completion in completions]

    words = PreTrainedTokenizerFast.from_pretrained(folder / "model", padding_side="left")
    rows = Dataset.from_list([{"prompt": text} for text in json.loads((folder / "prompts.json").read_text())])
    config = GRPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=PROMPTS * GROUP // accumulate,
        gradient_accumulation_steps=accumulate, num_generations=GROUP,
        max_completion_length=limit, max_steps=10_000, logging_steps=10_000, report_to=[], use_cpu=True, bf16=False,
        learning_rate=1e-6, gradient_checkpointing=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(str(folder / "model"), threes, config, rows, processing_class=words, callbacks=[Turns()])
    threading.Thread(target=trainer.train, daemon=True).start()

    def step() -> dict[str, float]:
        asked.put("go")
        seconds = done.get(timeout=600)
        said = trainer._metrics["train"]
        return {"seconds": seconds, "length": said["completions/mean_length"][-1], "entropy": said["entropy"][-1]}

    return {"version": trl.__version__}, step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="width 64, two layers, two rounds")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--limits", type=int, nargs="+", default=[64, 200], help="tokens of an answer at most")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of ours, at least")
    parser.add_argument("--trl-accumulate", type=int, default=1, help="micro-batches of TRL's")
    parser.add_argument("--trl", help="the Python of an environment with TRL 1.16 and torch; left out where not given")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, folder, limit, accumulate = arguments.child
        serve(lambda: {"ours": ours, "trl": trl}[name](Path(folder), int(limit), int(accumulate)))
        return
    width, layers, rounds = (64, 2, 2) if arguments.quick else (arguments.width, arguments.layers, arguments.rounds)
    print(f"{PROMPTS} prompts × {GROUP}, width {width}, {layers} layers, float32, one core; CPU seconds of a step")
    print(f"{'limit':>6}  {'':12}{'best':>8}{'median':>8}{'median / ours':>15}{'mean length':>13}{'entropy':>9}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_model(folder, width, layers)
        for limit in arguments.limits:
            compare(folder, limit, rounds, arguments)


def compare(folder: Path, limit: int, rounds: int, arguments: argparse.Namespace) -> None:
    """Print the rows of one limit."""
    script, given = str(Path(__file__).resolve()), [str(folder), str(limit)]
    child = [script, "--child", "ours", *given, str(arguments.accumulate)]
    contestants = [Contestant("ours", sys.executable, child, 1)]
    if arguments.trl:
        child = [script, "--child", "trl", *given, str(arguments.trl_accumulate)]
        contestants.append(Contestant("TRL", arguments.trl, child, 1))
    taken: dict[str, list[dict[str, float]]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds + 1):
        for contestant in contestants:
            found = contestant.round()
            if number:  # in the first, libraries wake up
                taken[contestant.name].append(found)
    for contestant in contestants:
        contestant.leave()
    means = {name: {key: statistics.fmean(r[key] for r in rows) for key in SAME} for name, rows in taken.items()}
    medians = {name: statistics.median(r["seconds"] for r in rows) for name, rows in taken.items()}
    for contestant in contestants:
        name, best = contestant.name, min(r["seconds"] for r in taken[contestant.name])
        for key, bound in SAME.items():
            if abs(means[name][key] / means["ours"][key] - 1) > bound:
                raise SystemExit(f"limit {limit}: {name} disagrees in {key}: {means}")
        label = f"{name} {contestant.about['version']}"
        print(
            f"{limit:6}  {label:12}{best:8.2f}{medians[name]:8.2f}"
            f"{medians[name] / medians['ours']:15.2f}{means[name]['length']:13.1f}{means[name]['entropy']:9.3f}",
            flush=True,
        )
    if not arguments.trl:
        print(f"{limit:6}  TRL left out: --trl was not given")


if __name__ == "__main__":
    main()
