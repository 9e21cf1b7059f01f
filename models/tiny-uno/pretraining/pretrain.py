"""Train the embedded base from nothing: flow matching on composited scenes of the train split's people.

`python models/tiny-uno/pretraining/pretrain.py` trains by params.yaml of the folder above and writes the base there:
diffusers' components, people.json (whom it has seen), curve.csv, samples.png, training.json, SHA256SUMS. Killed, it
goes on from its last checkpoint to the same weights; every step draws from generators of its own number.
"""

import argparse
import csv
import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from scenes import Ease, Photo, Scene, Scenes, decode, exported, photos_of_people, shrink
from torch import Tensor
from tqdm import tqdm

from umo import flow
from umo.customizers import Drawing, draw
from umo.customizers.build import TINY, build_tiny
from umo.customizers.condition import Condition
from umo.customizers.flux_uno import FluxUno
from umo.customizers.tiny import PatchAutoencoder
from umo.files import replacing
from umo.guidance import CONDITIONAL
from umo.scenes.prompts import COLOURS, TEXTURES, prompt

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
TRAINED = ("transformer", "text_encoder", "text_encoder_2")


class Params(BaseModel):
    """
    data: folder of the exported sets, from the repository's root.
    seed: of every draw.
    steps, batch, learning_rate, warmup (share of the steps), weight_decay, max_gradient: of AdamW, cosine to 0.
    bf16: whether the transformer computes in bfloat16; weights stay in float32.
    ema: decay of the averaged weights, which are what is saved.
    time_mean, time_std: of the logit-normal training times.
    face_weight: how much more the loss counts where people are.
    people, people_shares: numbers of people in a scene and how often.
    height, widths: of a scene in pixels; three people take the widest, fewer the narrowest.
    min_scale, max_scale, max_roll, max_light: as synthesise's.
    easy_until, hard_from: shares of the steps; before the first, faces are copies on the patch grid, after the second
        they stand anywhere, at any scale.
    same_photo, same_photo_late: share of references that are the photograph in the scene, before and after `hard_from`.
    morph: share of people who are a mixture of two.
    reorder: share of scenes whose references are not given from left to right.
    autoencoder_scenes: how many the autoencoder is fitted on.
    checkpoint_every, validate_every: steps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path
    seed: int
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    max_gradient: float = Field(gt=0)
    bf16: bool
    ema: float = Field(ge=0, lt=1)
    time_mean: float
    time_std: float = Field(gt=0)
    face_weight: float = Field(ge=1)
    people: list[int]
    people_shares: list[float]
    height: int = Field(multiple_of=8)
    widths: list[int]
    min_scale: float
    max_scale: float
    max_roll: float
    max_light: float
    easy_until: float = Field(ge=0, le=1)
    hard_from: float = Field(ge=0, le=1)
    same_photo: float = Field(ge=0, le=1)
    same_photo_late: float = Field(ge=0, le=1)
    morph: float = Field(ge=0, le=1)
    reorder: float = Field(ge=0, le=1)
    autoencoder_scenes: int = Field(ge=1)
    checkpoint_every: int = Field(ge=1)
    validate_every: int = Field(ge=1)


class Trainer:
    """The base, its optimizer and its averaged weights, at some step."""

    def __init__(self, params: Params, base: FluxUno, scenes: Scenes) -> None:
        self.params, self.base, self.scenes, self.step = params, base, scenes, 0
        self.modules = [getattr(base, name).requires_grad_(True) for name in TRAINED]
        self.weights = [p for module in self.modules for p in module.parameters()]
        self.average = [p.detach().clone() for p in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, betas=(0.9, 0.98), weight_decay=params.weight_decay)
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0

    def train_step(self) -> float:
        """One update; its loss."""
        params, rng = self.params, np.random.default_rng([self.params.seed, 1, self.step])
        ease = ease_at(params, self.step / params.steps)
        n = int(rng.choice(params.people, p=np.array(params.people_shares) / sum(params.people_shares)))
        width = width_for(params, n)
        batch = [self.scenes.draw(n, width, ease, rng) for _ in range(params.batch)]
        loss = self.loss(batch, torch.Generator().manual_seed(int(rng.integers(2**62))))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(params, self.step)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, params.max_gradient)
        self.optimizer.step()
        # A short memory at first: an average over the random beginning would never forget it.
        decay = min(params.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, self.weights, 1 - decay)
        self.step += 1
        return float(loss.detach())

    def loss(self, batch: Sequence[Scene], generator: torch.Generator) -> Tensor:
        """Of scenes of one size with equally many people."""
        params = self.params
        with torch.no_grad():
            x0 = self.base.encode(pictures([scene.target for scene in batch]))
            references = self.base.encode(pictures([one for scene in batch for one in scene.references]))
        text, pooled = self.base.embed_prompts([scene.prompt for scene in batch])
        per_scene = references.unflatten(0, (len(batch), -1))
        condition = Condition(
            tuple(
                {"text": text[row], "pooled": pooled[row], **{f"reference{k}": one for k, one in enumerate(same)}}
                for row, same in enumerate(per_scene)
            ),
            (CONDITIONAL,) * len(batch),
        )
        heads = torch.from_numpy(np.stack([scene.heads for scene in batch]))[:, None]
        weight = 1 + (params.face_weight - 1) * F.interpolate(heads, x0.shape[2:], mode="area")
        noise = torch.randn(x0.shape, generator=generator)
        sigma = flow.logit_normal(len(batch), generator, params.time_mean, params.time_std)

        def velocity(x: Tensor, s: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=params.bf16):
                return self.base.velocity(x, s, condition).float()

        return flow.loss(velocity, x0, noise, sigma, weight / weight.mean())

    def averaged(self) -> FluxUno:
        """Put the averaged weights in; `restore` takes them out again."""
        self.kept = [p.detach().clone() for p in self.weights]
        for p, mean in zip(self.weights, self.average, strict=True):
            p.data.copy_(mean)
        return self.base

    def restore(self) -> None:
        for p, kept in zip(self.weights, self.kept, strict=True):
            p.data.copy_(kept)

    def save(self, path: Path, key: str) -> None:
        state = {
            "key": key,
            "step": self.step,
            "seconds": self.seconds,
            "weights": [p.detach() for p in self.weights],
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "curve": self.curve,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def resume(self, path: Path, key: str) -> None:
        """From a checkpoint of the same data and params, if there is one."""
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        if state["key"] != key:
            print(f"{path}: of other data or params; starting anew")
            return
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]
        for mine, saved in ((self.weights, state["weights"]), (self.average, state["average"])):
            for p, value in zip(mine, saved, strict=True):
                p.data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])


def ease_at(params: Params, progress: float) -> Ease:
    """Easy, then harder in a line, then as hard as the real scenes."""
    span = max(params.hard_from - params.easy_until, 1e-9)
    freedom = min(max((progress - params.easy_until) / span, 0.0), 1.0)
    return Ease(freedom, params.same_photo if freedom < 1 else params.same_photo_late)


def width_for(params: Params, n: int) -> int:
    """Of a scene of n people: three take the widest, fewer the narrowest."""
    return max(params.widths) if n == 3 else min(params.widths)


def learning_rate(params: Params, step: int) -> float:
    warm = max(1, round(params.warmup * params.steps))
    if step < warm:
        return params.learning_rate * (step + 1) / warm
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, params.steps - warm)))


def pictures(images: Sequence[np.ndarray]) -> Tensor:
    """(H, W, 3) uint8 each -> (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def all_prompts() -> list[str]:
    """Every prompt that the templates give for one to three people: the vocabulary."""
    grounds = [f"{texture} {colour}" for texture in TEXTURES for colour in COLOURS]
    orders = [[0.1], [0.5], [0.9], [0.2, 0.8], [0.8, 0.2], [0.1, 0.5, 0.9], [0.9, 0.5, 0.1], [0.5, 0.1, 0.9]]
    return [prompt(order, ground) for order in orders for ground in [None, *grounds]]


def new_trainer(params: Params, people: dict[str, dict[str, Photo]]) -> Trainer:
    """Random weights, and an autoencoder fitted on scenes and references."""
    scenes = Scenes([list(photos.values()) for photos in people.values()], params)
    fitting = []
    for index in range(params.autoencoder_scenes):
        n = 1 + index % min(3, len(people) // 2)
        width = width_for(params, n)
        scene = scenes.draw(n, width, Ease(1.0, 0.0), np.random.default_rng([params.seed, 0, index]))
        fitting += [pictures([image])[0] for image in (scene.target, *scene.references)]
    size = params.height
    settings = TINY.model_copy(
        update={
            "reference_side": size,
            "references_side": size,
            "sizes": ((size, min(params.widths)), (size, min(params.widths)), (size, max(params.widths))),
        }
    )
    base = build_tiny(all_prompts(), PatchAutoencoder().fit(fitting), params.seed, settings)
    return Trainer(params, base, scenes)


def validation_batches(params: Params, rows: Sequence[dict[str, Any]]) -> list[list[Scene]]:
    """Up to 16 exported validation sets for each number of people and width, at the base's size."""
    groups: dict[tuple[int, int], list[Scene]] = {}
    for row in rows:
        target = decode(row["target"]["bytes"])
        width = round(target.shape[1] * params.height / target.shape[0] / 8) * 8
        if row["n"] not in params.people or width != width_for(params, row["n"]):
            continue
        small = shrink(target, (params.height, width))
        side = (params.height, params.height)
        references = [shrink(decode(image["bytes"]), side) for image in row["references"]]
        group = groups.setdefault((row["n"], width), [])
        if len(group) < 16:
            group.append(Scene(row["prompt"], small, references, np.zeros(small.shape[:2], np.float32)))
    return list(groups.values())


@torch.no_grad()
def validation_loss(trainer: Trainer, batches: Sequence[Sequence[Scene]]) -> float:
    """Of people never trained on, with the same noise every time."""
    trainer.averaged()
    losses = [trainer.loss(batch, torch.Generator().manual_seed(7)) for batch in batches]
    trainer.restore()
    return float(torch.stack(losses).mean()) if losses else float("nan")


def write_samples(base: FluxUno, batches: Sequence[Sequence[Scene]], path: Path) -> None:
    """A row a validation set: references, target, two drawings."""
    rows = []
    for batch in batches:
        for scene in batch[:3]:
            height, width = scene.target.shape[:2]
            drawn = draw(base, [scene.prompt] * 2, [scene.references] * 2, [0, 1], Drawing((height, width)))
            shown = ((drawn + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
            blank = [np.full((height, height, 3), 255, np.uint8)] * (3 - len(scene.references))
            row = np.hstack([*scene.references, *blank, scene.target, *shown])
            rows.append(np.pad(row, ((0, 2), (0, 3 * height + 3 * 192 - row.shape[1]), (0, 0)), constant_values=255))
    Image.fromarray(np.vstack(rows)).save(path)


def train(params: Params, work: Path, out: Path) -> None:
    """Train to the end, from the last checkpoint in `work` if there is one, and write the base into `out`."""
    rows = exported(ROOT / params.data, "train")
    people = photos_of_people(rows)
    batches = validation_batches(params, exported(ROOT / params.data, "validation"))
    work.mkdir(parents=True, exist_ok=True)
    seen = {person: sorted(photos) for person, photos in people.items()}
    key = hashlib.sha256(json.dumps([params.model_dump(mode="json"), seen]).encode()).hexdigest()
    trainer = new_trainer(params, people)
    trainer.resume(work / "checkpoint.pt", key)
    bar = tqdm(total=params.steps, initial=trainer.step, desc="tiny-uno", unit="step")
    recent: list[float] = []
    while trainer.step < params.steps:
        started = time.perf_counter()
        recent.append(trainer.train_step())
        trainer.seconds += time.perf_counter() - started
        bar.update()
        last = trainer.step == params.steps
        if trainer.step % params.validate_every == 0 or last:
            entry = {"step": trainer.step, "loss": float(np.mean(recent)), "seconds": round(trainer.seconds, 1)}
            entry["validation_loss"] = validation_loss(trainer, batches)
            trainer.curve.append(entry)
            bar.set_postfix(loss=f"{entry['loss']:.3f}", validation=f"{entry['validation_loss']:.3f}")
            recent = []
        if trainer.step % params.checkpoint_every == 0 or last:
            trainer.save(work / "checkpoint.pt", key)
    bar.close()
    publish(trainer, batches, seen, work / "base", out)


def publish(
    trainer: Trainer, batches: Sequence[Sequence[Scene]], seen: dict[str, list[str]], new: Path, out: Path
) -> None:
    """Write all products beside each other, then move each over the old one."""
    shutil.rmtree(new, ignore_errors=True)
    base = trainer.averaged()
    base.save(new)
    write_samples(base, batches, new / "samples.png")
    (new / "people.json").write_text(json.dumps(seen, indent=1) + "\n")
    with (new / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "loss", "validation_loss", "seconds"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(trainer.curve)
    facts = {
        "steps": trainer.step,
        "seconds": round(trainer.seconds),
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in trainer.weights),
        "people": len(seen),
        "photographs": sum(map(len, seen.values())),
        **{name: trainer.curve[-1][name] for name in ("loss", "validation_loss")},
    }
    (new / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    files = sorted(path for path in new.rglob("*") if path.is_file())
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(new).as_posix()}\n" for path in files]
    (new / "SHA256SUMS").write_text("".join(sums))
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(new.iterdir()):
        if path.is_dir():
            shutil.rmtree(out / path.name, ignore_errors=True)
        path.replace(out / path.name)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=HERE / "params.yaml")
    parser.add_argument("--work", type=Path, default=ROOT / ".work" / "tiny-uno", help="checkpoints")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the base")
    given = parser.parse_args(arguments)
    train(Params(**yaml.safe_load(given.params.read_text())), given.work, given.out)


if __name__ == "__main__":
    main()
