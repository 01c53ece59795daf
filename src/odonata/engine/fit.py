"""The training loop: one process or many, one optimiser or several, resumed bit-equal after any kind of stop."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from odonata.engine import tensors
from odonata.engine.checkpoint import Checkpoints, latest_step
from odonata.engine.clipping import clip_gradients, first_bad, total_norm
from odonata.engine.distributed import (
    World,
    agree_on_largest,
    average_gradients,
    barrier,
    mean_over_ranks,
    scalars_of,
    shard,
)
from odonata.engine.ema import EMA
from odonata.engine.param_groups import build_optimizer
from odonata.engine.progress import ProgressBar
from odonata.engine.recipe import Recipe
from odonata.engine.run import Run
from odonata.engine.task import Task
from odonata.engine.tracker import Tracker, trackers
from odonata.errors import RunError

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """One training run.

    A method's `step` uses four verbs: `wrapped(network)` is the network made parallel, `autocast()` the precision,
    `backward(loss)` fills gradients, `update(name)` clips, checks and applies them. `minimise` composes them for one
    loss and one optimiser.

    Args:
        recipe: the resolved recipe.
        task: method, batches and evaluation, as a room built them.
        run: the open run folder; None trains without writing anything.
        world: this process's place among the ranks.
    """

    def __init__(self, recipe: Recipe, task: Task, run: Run | None, world: World) -> None:
        self.recipe, self.task, self.run, self.world = recipe, task, run, world
        self.step = 0
        self.method = task.method.to(world.device)
        self._parallelise()
        self.optimizers = self.method.optimizers(lambda module: build_optimizer(module, recipe.optim))
        self.ema = EMA(self.method, recipe.ema) if recipe.ema else None
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.precision == "fp16")  # pyright: ignore[reportPrivateImportUsage]
        self.gradient_norms: dict[str, float] = {}
        self.stop_signal = 0
        self.stale_evaluations = 0
        self.checkpoints = (
            Checkpoints(run.folder / "checkpoints", world, recipe.keep_checkpoints, self.sharded)
            if run is not None
            else None
        )

    # ---- the verbs of a step ------------------------------------------------------------------------------------

    def wrapped(self, network: nn.Module) -> nn.Module:
        """Return `network` as it must be called in training: replicated, sharded, or itself."""
        return self._wrapped.get(id(network), network)

    @contextlib.contextmanager
    def gathered(self, network: nn.Module) -> Generator[None]:
        """Make a network's own methods usable where its parameters are sharded: they are whole for the while.

        Within, ranks need not call it equally often. All must enter, and nothing may be differentiated.
        """
        modules = [module for part in (network, *self.method.networks()) for module in part.modules()]
        sharded = [module for module in dict.fromkeys(modules) if isinstance(module, FSDPModule)]
        # The hooks of a call would gather again what is whole, together with ranks that do not call now.
        hooks = [hooks for m in sharded for hooks in (m._forward_pre_hooks, m._forward_hooks)]  # pyright: ignore
        kept = [dict(part) for part in hooks]
        for module in sharded:
            module.unshard()
        for part in hooks:
            part.clear()
        try:
            yield
        finally:
            for part, before in zip(hooks, kept, strict=True):
                part.update(before)
            for module in sharded:
                module.reshard()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of the recipe's precision."""
        dtype = _AUTOCAST.get(self.recipe.precision)
        return torch.autocast(self.world.device.type, dtype) if dtype else contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to the parameters.

        Raises:
            RunError: the loss is not finite. No parameter has been changed by it.
        """
        value = float(loss.detach())
        bad = 0.0 if math.isfinite(value) else 1.0
        if self.world.size > 1:
            bad = agree_on_largest([bad], self.world.device)[0]
        if bad:
            what = f"the loss is {value}" if not math.isfinite(value) else "the loss is not finite on another process"
            raise RunError(self._not_finite(what))
        self.scaler.scale(loss).backward()

    def update(self, name: str = "main") -> None:
        """Clip the gradients, apply one update of optimiser `name`, and clear them.

        Raises:
            RunError: a gradient is not finite; says of which parameter. No parameter has been changed by it.
        """
        optimizer = self.optimizers[name]
        factor = self.recipe.schedule.factor(self.step, self.recipe.steps) * self.recipe.optim.lr
        decay = self.recipe.optim.decay_factor(self.step, self.recipe.steps)
        for group in optimizer.param_groups:
            group["lr"] = factor * group["scale"]
            group["weight_decay"] = decay * group["decay"]
        self.scaler.unscale_(optimizer)
        self.method.after_backward()
        if self.sharded:
            average_gradients(self._scalars)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        total = total_norm([p.grad for p in parameters if p.grad is not None])
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        self.gradient_norms[name] = norm
        # Before clipping, which spreads what is not finite from one gradient to all.
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise RunError(self._not_finite(f"the gradient of {first_bad(optimizer)} is not finite"))
        clip_gradients(self.recipe.clip, parameters, total, norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        for parameter in parameters:  # as optimizer.zero_grad() does, without its hooks for the profiler
            parameter.grad = None

    def minimise(self, network: nn.Module, batch: Any, name: str = "main") -> dict[str, Tensor]:
        """Do one update of `network(batch)["loss"]`, in the recipe's number of micro-batches; return its scalars."""
        wrapped = self.wrapped(network)
        if self.recipe.accumulate == 1:
            with self.autocast():
                out: dict[str, Tensor] = wrapped(batch)
            self.backward(out["loss"])
            self.update(name)
            return {key: value.detach() for key, value in out.items()}
        parts, logs = tensors.split(batch, self.recipe.accumulate), dict[str, Tensor]()
        count = tensors.rows(batch)
        for index, part in enumerate(parts):
            with self._no_sync(wrapped) if index < len(parts) - 1 else contextlib.nullcontext():
                with self.autocast():
                    out = wrapped(part)
                share = tensors.rows(part) / count  # the last part may be smaller
                self.backward(out["loss"] * share)
                for key, value in out.items():
                    logs[key] = logs.get(key, 0) + value.detach() * share
        self.update(name)
        return logs

    def minimise_parts(self, network: nn.Module, parts: Sequence[Any], name: str = "main") -> dict[str, Tensor]:
        """Do one update of the sum of `network(part)["loss"]` over micro-batches; return the sums of all scalars.

        Each part's loss must already be divided by a count over the whole batch of all ranks, so that the update is the
        same however it is divided. Ranks may have different numbers of parts, one at least.
        """
        wrapped, logs = self.wrapped(network), dict[str, Tensor]()
        # Every call gathers what is sharded, so ranks must call equally often: some a last part again, for nothing.
        calls = int(agree_on_largest([len(parts)], self.world.device)[0]) if self.sharded else len(parts)
        for part in [parts[-1]] * (calls - len(parts)):
            with self.autocast():
                (wrapped(part)["loss"] * 0).backward()
        for index, part in enumerate(parts):
            with self._no_sync(wrapped) if index < len(parts) - 1 else contextlib.nullcontext():
                with self.autocast():
                    out: dict[str, Tensor] = wrapped(part)
                if self.world.size == 1:
                    self.backward(out["loss"])
                else:  # ranks need not have as many parts; a loss that is not finite shows in every rank's gradient
                    self.scaler.scale(out["loss"]).backward()
            for key, value in out.items():
                logs[key] = logs.get(key, 0) + value.detach()
        self.update(name)
        return logs

    def average_gradients(self) -> None:
        """Average over the ranks gradients that came by a network's own methods instead of its wrapped call."""
        average_gradients(self.method.parameters())

    # ---- the loop -----------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, float]:
        """Train to the recipe's last step and return the figures of the last evaluation.

        Raises:
            RunError: a loss or gradient is not finite, the disk is full, or the run was told to stop.
        """
        recipe = self.recipe
        torch.manual_seed(recipe.seed * 1_000_003 + self.world.rank)
        if self.checkpoints and (found := self.checkpoints.load_latest(self.method, self.optimizers, self.ema)):
            self._go_on_from(*found)
        batches = self.task.batches.start(self.step, self.world.rank, self.world.size)
        logs = trackers(self.run.folder, upto=self.step) if self.run and self.world.leads else []
        bar = ProgressBar(recipe.name, recipe.steps, self.step, shown=self.run is not None and self.world.leads)
        figures: dict[str, float] = {}
        try:
            with self._signals(), self._warnings_into(logs):
                figures = self._loop(batches, logs, bar)
        finally:
            bar.close(self.step)
            for log in logs:
                log.close()
        return figures

    def _loop(self, batches: Iterator[Any], logs: Sequence[Tracker], bar: ProgressBar) -> dict[str, float]:
        recipe, device = self.recipe, self.world.device
        figures: dict[str, float] = {}
        waited, began, since = 0.0, time.perf_counter(), self.step
        self.method.train()
        while self.step < recipe.steps:
            asked = time.perf_counter()
            batch = tensors.move(next(batches), device)
            waited += time.perf_counter() - asked
            self.method.begin_step(self.step, recipe.steps)
            values = self.method.step(batch, self)
            self.method.after_update()
            if self.ema:
                self.ema.update(self.method)
            self.step += 1
            if self.step % recipe.log_every == 0 or self.step == recipe.steps or bar.due():
                elapsed = time.perf_counter() - began
                speed = (self.step - since) * self.task.batch_size / elapsed
                scalars = {k: float(v) for k, v in values.items()}
                bar.update(self.step, scalars, speed, waited / elapsed)
                if self.step % recipe.log_every == 0 or self.step == recipe.steps:
                    scalars = mean_over_ranks(scalars, device)
                    self._log(logs, scalars, speed, waited / elapsed)
                    if self.task.watch and self.world.leads:
                        self.task.watch(self.step, scalars)
                    waited, began, since = 0.0, time.perf_counter(), self.step
            evaluated = self.task.evaluate is not None and (
                self.step == recipe.steps or (recipe.eval_every and self.step % recipe.eval_every == 0)
            )
            if evaluated:
                paused = time.perf_counter()
                figures = self._evaluate()
                bar.say(f"step {self.step}: " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))
                for log in logs:
                    log.log(self.step, figures)
                if self.task.watch and self.world.leads:
                    self.task.watch(self.step, figures)
                began += time.perf_counter() - paused
            ended = self._save_if_due(figures if evaluated else None, bar)
            if ended:
                break
        return figures

    def _save_if_due(self, figures: dict[str, float] | None, bar: ProgressBar) -> bool:
        """Save where it is time; return whether the run ends here."""
        stop = self.stop_signal
        if self.world.size > 1:
            stop = int(agree_on_largest([stop], self.world.device)[0])
        improved = self._improved(figures) if figures else None
        patience = self.recipe.early_stop
        exhausted = bool(patience and self.stale_evaluations >= patience)
        last = self.step == self.recipe.steps or exhausted or bool(stop)
        if self.checkpoints and (last or improved is not None or self.step % self.recipe.checkpoint_interval == 0):
            extra = {"scaler": self.scaler.state_dict(), "stale_evaluations": self.stale_evaluations}
            self.checkpoints.save(self.step, self.method, self.optimizers, self.ema, extra, best_value=improved)
        if stop:
            where = f"saved at step {self.step}; go on with `odonata resume {self.run.folder}`" if self.run else ""
            raise RunError(f"stopped by {signal.Signals(stop).name}: {where}")
        if exhausted:
            bar.say(f"step {self.step}: {self.task.goal} has not improved for {patience} evaluations: stopping early")
        return exhausted

    def _improved(self, figures: dict[str, float]) -> float | None:
        """Return the goal's value if it is the best so far."""
        if not self.task.goal:
            return None
        value = figures[self.task.goal]
        best = self.checkpoints.best[1] if self.checkpoints and self.checkpoints.best else None
        sign = 1 if self.task.better == "higher" else -1
        if best is None or sign * value > sign * best:
            self.stale_evaluations = 0
            return value
        self.stale_evaluations += 1
        return None

    def _evaluate(self) -> dict[str, float]:
        assert self.task.evaluate is not None
        devices = [self.world.device] if self.world.device.type == "cuda" else []
        averaged = self.ema.applied(self.method) if self.ema else contextlib.nullcontext()
        self.method.eval()
        with torch.random.fork_rng(devices), averaged, torch.no_grad(), self.gathered(self.method):
            figures = self.task.evaluate(self.method)
        self.method.train()
        return figures

    # ---- the parts ----------------------------------------------------------------------------------------------

    def _parallelise(self) -> None:
        self._wrapped: dict[int, nn.Module] = {}
        self.sharded = self.recipe.parallel == "fsdp" and dist.is_initialized()
        self._scalars: set[nn.Parameter] = set()
        networks = self.method.networks()
        if self.sharded:
            self._scalars = scalars_of(self.method)
            shard(networks, self.method.shard_units(), self.world)
        elif self.world.size > 1:
            ids = [self.world.device.index] if self.world.device.type == "cuda" else None
            for network in networks:
                # Buffers stay each rank's own: they are saved per rank, and nothing is sent before each forward.
                with warnings.catch_warnings():  # its successor would copy rank 0's buffers at a resume
                    warnings.simplefilter("ignore", FutureWarning)
                    wrapped = DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False)
                self._wrapped[id(network)] = wrapped

    def _no_sync(self, network: nn.Module) -> contextlib.AbstractContextManager[Any]:
        return network.no_sync() if isinstance(network, DistributedDataParallel) else contextlib.nullcontext()

    def _log(self, logs: Sequence[Tracker], scalars: dict[str, float], speed: float, waiting: float) -> None:
        rate = self.recipe.schedule.factor(self.step - 1, self.recipe.steps) * self.recipe.optim.lr
        norms = {f"grad_norm/{k}" if k != "main" else "grad_norm": v for k, v in self.gradient_norms.items()}
        for log in logs:
            log.log(
                self.step, {**scalars, **norms, "lr": rate, "samples_per_s": round(speed, 1), "wait": round(waiting, 4)}
            )

    def _go_on_from(self, step: int, extra: dict[str, Any]) -> None:
        self.step = step
        self.scaler.load_state_dict(extra["scaler"])
        self.stale_evaluations = extra["stale_evaluations"]
        if extra["world_changed"]:  # there are no random states for this number of ranks
            torch.manual_seed((self.recipe.seed * 1_000_003 + step) * 1_000_003 + self.world.rank)

    def _not_finite(self, what: str) -> str:
        stands = latest_step(self.checkpoints.folder) if self.checkpoints else None
        kept = f"the checkpoint of step {stands} is kept" if stands is not None else "no checkpoint was made before"
        return (
            f"step {self.step + 1}: {what}; {kept}. Try a lower --optim.lr, --clip.policy norm, a longer "
            f"--schedule.warmup, or --precision fp32"
        )

    @contextlib.contextmanager
    def _warnings_into(self, logs: Sequence[Tracker]) -> Generator[None]:
        """Write warnings, such as of a picture that was skipped, into the run's log as well."""
        handler, logger = _ToTrackers(lambda: self.step, logs), logging.getLogger("odonata")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    @contextlib.contextmanager
    def _signals(self) -> Generator[None]:
        """Let SIGTERM and Ctrl-C end the run after the step at hand, with a checkpoint; a second Ctrl-C ends it now."""

        def note(number: int, frame: Any) -> None:
            if self.stop_signal and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stop_signal = number

        if self.run is None:
            yield
            return
        previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _ToTrackers(logging.Handler):
    def __init__(self, step: Callable[[], int], logs: Sequence[Tracker]) -> None:
        super().__init__(logging.WARNING)
        self.step, self.logs = step, logs

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr)
        for log in self.logs:
            log.log(self.step(), {"warning": record.getMessage()})


def train(recipe: Recipe, task: Task, folder: Path | None, world: World, *, resume: bool = False) -> dict[str, float]:
    """Train a task in a run folder from its start or from its last checkpoint; return the last evaluation's figures.

    Args:
        recipe: the resolved recipe.
        task: what the room built from it.
        folder: the run folder, or None to write nothing.
        world: this process among the ranks.
        resume: go on from the folder's last checkpoint.

    Raises:
        RunError: see `Engine.fit` and `Run`.
    """
    run: Run | None = None
    engine: Engine | None = None
    if folder is not None:
        run = Run(folder, resume=resume) if world.leads else Run.joined(folder)
    try:
        if run and world.leads:
            if resume:
                run.check_fingerprint(task.fingerprint)
            else:
                if task.save_assets:
                    task.save_assets(run.folder / "assets")
                run.describe(recipe, task.fingerprint)
        barrier()
        engine = Engine(recipe, task, run, world)
        figures = engine.fit()
        if task.conclude and world.leads:
            for line in task.conclude(task.method, folder):
                print(line)
        return figures
    except BaseException:
        if run and world.leads and not resume and (engine is None or engine.step == 0):
            run.discard()  # nothing was learned: what stands there would only be in the way of the next attempt
        raise
    finally:
        if run:
            run.close()
