"""The run around an objective: updates, averaged weights, validation, checkpoints, and going on after a kill.

An update is a function of the weights, the optimizer's state and its own number: what it draws comes from generators
keyed by that number, so a run that is killed and goes on from a checkpoint is the run that was not killed, bit for bit.
Several processes (accelerate) share a batch; see `umo.training.processes`.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from tqdm import tqdm

from umo.customizers.base import Customizer, Drawing
from umo.customizers.frozen import cast_storage, make_optimizer
from umo.errors import BadInput, WorkFailed
from umo.rewards import MatchingReward
from umo.training import checkpoints, processes
from umo.training.draws import BATCH, draw_randomness, generator
from umo.training.objectives import OBJECTIVES
from umo.training.objectives.base import Row
from umo.training.progress import Progress
from umo.training.recipe import Method, Recipe
from umo.training.samples import Samples
from umo.training.validation import in_parts, measure
from umo.training.weights import Weights

Log = Callable[[int, Row], None]
MAX_BAD = 3  # updates in a row without a finite gradient


class Trainer:
    """Tunes a customizer's LoRA by a method. After `run` the customizer carries the weights that are to be saved.

    Attributes:
        seconds: that all updates up to one took, by its number; part of a checkpoint and of nothing that is compared.
    """

    def __init__(
        self,
        customizer: Customizer,
        train: Samples,
        validation: Samples | None,
        reward: MatchingReward,
        recipe: Recipe,
        method: Method,
        folder: Path,
        log: Log | None = None,
        how: Drawing | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        """
        Args:
            reward: of pictures, called as `MatchingReward` is; measures only where the method is `sft`. One without a
                gradient says so by `differentiable = False`.
            folder: of checkpoints; a run that finds some goes on from the newest.
            log: called after every update and every validation with its number and figures; what a resumed run had
                logged before its checkpoint is given again first, so that a log can be written anew.
            how: steps and guidance that validation draws with, those that the result will be drawn with; None takes
                the base's own.
            accelerator: of `processes.start`; None makes one for the customizer's device.

        Raises BadInput: as `processes.start`; nobody to validate on, or people of the validation are trained on; a
        reward without the gradient that the objective needs; a KL without a base to compare with.
        """
        self.accelerator = accelerator or processes.start(recipe, str(customizer.device))
        self.customizer, self.train, self.validation, self.reward = customizer, train, validation, reward
        self.recipe, self.method, self.folder, self.log, self.how = recipe, method, folder, log, how
        self.kind = OBJECTIVES["sft" if method == "sft" else recipe.objective]
        self._check()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            customizer.add_lora(recipe.rank)
        cast_storage(customizer.transformer, recipe.weights)
        several = self.accelerator.num_processes > 1
        if several:
            processes.distribute(customizer, self.accelerator)
        if recipe.checkpoint_gradients:
            customizer.checkpoint_gradients()
        if recipe.compile_blocks:
            customizer.compile_blocks()
        trained = [weight for weight in customizer.transformer.parameters() if weight.requires_grad]
        self.gradients = processes.Gradients(trained) if several else None
        self.weights = Weights(trained, recipe.ema)
        self.objective = self.kind(customizer, reward, recipe, self.accelerator, self.weights)
        self.optimizer = make_optimizer(
            recipe.optimizer, self.weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.schedule = get_scheduler(
            "cosine" if recipe.schedule == "cosine" else "constant_with_warmup",
            self.optimizer,
            num_warmup_steps=recipe.warmup,
            num_training_steps=recipe.steps,
        )
        self.progress = Progress()
        self.seconds = {0: 0.0}
        self._saved_step = -1
        self._forwards = 0
        customizer.transformer.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, network: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._forwards += len(inputs[0] if inputs else named["hidden_states"])

    def _check(self) -> None:
        recipe = self.recipe
        if recipe.through_reward(self.method) and not getattr(self.reward, "differentiable", True):
            raise BadInput(f"{recipe.objective} needs a reward with a gradient: set objective to nft or grpo")
        if recipe.velocity_kl and getattr(self.customizer.transformer, "peft_config", None):
            raise BadInput(
                f"velocity_kl has no base to compare with: {self.customizer.name} came with the LoRA that is trained "
                "on, and is another base without it; set velocity_kl to 0"
            )
        if self.recipe.validate_every and self.validation is None:
            raise BadInput("validate_every is set and there are no validation samples: give some, or set it to 0")
        if self.validation is not None and (both := sorted(self.train.people & self.validation.people)):
            raise BadInput(f"{len(both)} people are trained on and validated on (first {both[0]}): split by person")

    def run(self, until: int | None = None) -> Progress:
        """Train to the end, or until so many updates are done, from the newest checkpoint where there is one.

        Three updates in a row without a finite loss and gradient raise WorkFailed; the last checkpoint stays.
        """
        self._resume()
        progress, recipe, main = self.progress, self.recipe, self.accelerator.is_main_process
        if recipe.validate_every and not progress.history:
            self._validate()
        end = recipe.steps if until is None else min(until, recipe.steps)
        bar = tqdm(total=recipe.steps, initial=progress.step, desc=f"train {self.method}", disable=not main)
        with bar:
            while progress.step < end and not progress.stopped:
                started = time.perf_counter() - max(self.seconds.values())
                row = self.update() | {"evaluations": progress.evaluations}
                self.seconds[progress.step] = time.perf_counter() - started
                self._note(progress.step, row)
                bar.update()
                bar.set_postfix({key: f"{row[key]:.3f}" for key in ("reward", "diffusion_loss") if key in row})
                # Also after the last update: what is not validated cannot be chosen.
                if recipe.validate_every and (
                    progress.step % recipe.validate_every == 0 or progress.step == recipe.steps
                ):
                    self._validate()
                if progress.step % recipe.checkpoint_every == 0:
                    self._checkpoint()
        if progress.step != self._saved_step:
            self._checkpoint()
        self.weights.install_result()
        return progress

    def update(self) -> Row:
        """One update; returns its figures."""
        progress, recipe = self.progress, self.recipe
        rows = self._choose(progress.step)
        self.optimizer.zero_grad(set_to_none=self.gradients is None)  # or they would leave DDP's buckets
        forwards = self._forwards
        row = self._backward(rows)
        progress.evaluations += self._over_all(self._forwards - forwards)
        self._average_gradients()
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights, recipe.max_gradient))
        progress.step += 1
        if not all(math.isfinite(value) for value in (norm, *row.values())):
            self._skip(rows)
            return {"skipped": progress.skipped}
        rate = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.schedule.step()
        self.weights.average()
        progress.bad = 0
        return row | {"gradient_norm": norm, "learning_rate": rate}

    def _skip(self, rows: Sequence[int]) -> None:
        progress = self.progress
        progress.skipped += 1
        progress.bad += 1
        if progress.bad >= MAX_BAD:
            names = ", ".join(self.train.entries[row].name for row in rows)
            kept = checkpoints.find(self.folder)
            left = f"the last good checkpoint is {kept[-1]}" if kept else f"there is no checkpoint yet in {self.folder}"
            raise WorkFailed(
                f"{self.method}: {MAX_BAD} updates in a row without a finite reward and gradient, the last number "
                f"{progress.step} on the batch {names}; {left}: lower the learning rate or the reward weight"
            )

    def _choose(self, step: int) -> list[int]:
        """The batch of an update: samples of one size, sizes as often as their samples; one batch a rollout."""
        rollout = step // self.recipe.updates_per_rollout
        draw = generator(self.recipe.seed, BATCH, rollout)
        sizes = list(self.train.by_size.values())
        bucket = sizes[int(torch.multinomial(torch.tensor([float(len(rows)) for rows in sizes]), 1, generator=draw))]
        order: list[int] = []
        while len(order) < self.recipe.batch:  # a bucket smaller than a batch goes round
            order += torch.randperm(len(bucket), generator=draw).tolist()
        return [bucket[k] for k in order[: self.recipe.batch]]

    def _backward(self, rows: Sequence[int]) -> Row:
        """Gradients of the mean loss over this process's share; the figures are means over all processes."""
        share = range(self.accelerator.process_index, self.recipe.batch, self.accelerator.num_processes)
        sums: Row = {}
        for part in in_parts(list(share), self.recipe.micro_batch):
            batch = self.train.batch([rows[k] for k in part])
            draws = draw_randomness(self.recipe, batch.target.shape[1:], self.progress.step, part)
            if draws.unprompted:
                batch = replace(batch, condition=batch.condition.unprompted(draws.unprompted))
            row = self.objective.backward(batch, draws, weight=len(part) / len(share), part=part[0])
            for key, value in row.items():
                sums[key] = sums.get(key, 0.0) + value * len(part) / len(share)
        keys = sorted(sums)
        own = torch.tensor([sums[key] for key in keys], device=self.accelerator.device)
        return dict(zip(keys, self.accelerator.reduce(own, "mean").tolist(), strict=True))

    def _over_all(self, count: int) -> int:
        """The sum over all processes."""
        return int(self.accelerator.reduce(torch.tensor(count, device=self.accelerator.device), "sum"))

    def _average_gradients(self) -> None:
        if self.gradients is not None:
            self.gradients.average()

    @torch.no_grad()
    def _validate(self) -> None:
        """Draw the validation people's samples with the averaged weights; keep the best, and stop where it is due."""
        assert self.validation is not None
        with self.weights.averaged():
            row = measure(self.customizer, self.validation, self.reward, self.recipe, self.accelerator, self.how)
        progress = self.progress
        self._note(progress.step, row)
        if not self.objective.rewarded:
            return
        if row["validation/reward"] > progress.best:
            progress.best, progress.best_step, progress.stale = row["validation/reward"], progress.step, 0
            progress.chosen = True
            self.weights.keep_best()
        else:
            progress.stale += 1
            progress.stopped = 0 < self.recipe.patience <= progress.stale

    def _note(self, step: int, row: Row) -> None:
        self.progress.history.append((step, row))
        if self.log is not None and self.accelerator.is_main_process:
            self.log(step, row)

    def _checkpoint(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            **self.weights.state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "progress": asdict(self.progress),
            "seconds": self.seconds,
            "recipe": [self.method, self.recipe.model_dump_json()],
        }
        checkpoints.save(self.folder, self.progress.step, state, self.recipe.keep)
        self._saved_step = self.progress.step

    def _resume(self) -> None:
        """Take up the newest whole checkpoint."""
        with self.accelerator.main_process_first():  # it removes a damaged one
            state = checkpoints.newest(self.folder)
        if state is None:
            return
        if state["recipe"] != [self.method, self.recipe.model_dump_json()]:
            raise BadInput(f"{self.folder}: checkpoints of another run: remove them, or train into another folder")
        self.weights.take(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.progress, self.seconds = Progress(**state["progress"]), state["seconds"]
        self._saved_step = self.progress.step
        for step, row in self.progress.history:
            if self.log is not None and self.accelerator.is_main_process:
                self.log(step, row)
