"""Scenes of invented people: a text-to-image pipeline draws the same ones twice, side by side, as for UNO's data.

The left half becomes the reference, the right half the target.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipelines.core.bases import Base, weights_digest
from pipelines.core.sources import DRAWN
from pipelines.synthesise import templates
from pipelines.synthesise.base import numbers, scene_of
from pipelines.synthesise.params import Diffusion, Params, Strict
from pipelines.synthesise.strict import Panel, Shown, group_fault, pair
from pipelines.synthesise.templates import Asked
from umo.errors import BadInput, WorkFailed
from umo.files import replacing
from umo.images import encode_png, read_image
from umo.scenes.prompts import diptych_prompt


@dataclass(frozen=True)
class Diptychs:
    """Draws with a text-to-image pipeline of diffusers."""

    params: Params
    diffusion: Diffusion
    device: str
    halves: ClassVar[tuple[str, ...]] = ("reference", "target")

    @classmethod
    def of(cls, params: Params, diffusion: Diffusion, device: str, bases: Sequence[str]) -> "Diptychs":
        """Raises BadInput for no such folder, no text-to-image pipeline in it, or no licence for what it draws."""
        folder = Path(diffusion.model)
        if not folder.is_dir():
            raise BadInput(
                f"synthesise.diffusion.model: '{folder}' is neither a name under bases ({', '.join(bases)}) nor the "
                "folder of a text-to-image pipeline: give one of them"
            )
        from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

        from umo.customizers.folder import read_index

        name = read_index(folder)["_class_name"]
        if name not in {kind.__name__ for kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}:
            raise BadInput(
                f"{folder}: {name} draws no pictures from text alone; give the folder of a text-to-image pipeline"
            )
        if not diffusion.licence:
            raise BadInput(
                f"synthesise.diffusion.licence is missing: say on what terms pictures of {folder} may be used"
            )
        return cls(params, diffusion, device)

    def asked(self) -> dict[str, list[Asked]]:
        texts = templates.read(self.diffusion.templates)
        asked: dict[str, list[Asked]] = {}
        for name, split, which in numbers(self.params):
            asked[name] = []
            for number in which:
                n, rng = scene_of(self.params, split, number)
                left, right = templates.describe(texts, rng)
                prompt = diptych_prompt(right.style, (left.scene, right.scene), n)
                asked[name].append(Asked(f"{split}/{number}", split, n, prompt, (left, right)))
        return asked

    def model_inputs(self) -> dict[str, str]:
        return {"weights": weights_digest(Base(folder=Path(self.diffusion.model)))}

    def draw(self, asked: Sequence[Asked], kept: Path) -> Iterator[list[tuple[np.ndarray, ...]]]:
        for case in asked:
            files = [kept / f"{case.file_name}-{rank}.png" for rank in range(self.diffusion.seeds)]
            if not all(file.exists() for file in files):
                # All of a case's, whichever are missing: a resumed run must give the same bytes as a whole one.
                for file, picture in zip(files, self._draw(case), strict=True):
                    with replacing(file) as temporary:
                        temporary.write_bytes(encode_png(picture))
            yield [halves(read_image(file)) for file in files]

    def _draw(self, case: Asked) -> np.ndarray:
        """(seeds, H, W, 3) uint8."""
        import torch

        from umo.customizers.base import seed_of

        pipeline = load(Path(self.diffusion.model), self.device, self.diffusion.precision)
        seeds = [seed_of(case.name, self.params.seed, rank) for rank in range(self.diffusion.seeds)]
        options = {"num_inference_steps": self.diffusion.steps, "guidance_scale": self.diffusion.guidance}
        if self.diffusion.size:
            options |= dict(zip(("height", "width"), self.diffusion.size, strict=True))
        drawn = pipeline(
            prompt=[case.prompt] * len(seeds),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
            **{name: value for name, value in options.items() if value is not None},
        ).images
        pictures = np.asarray(drawn, np.float32)
        if not np.isfinite(pictures).all():
            raise WorkFailed(f"{self.diffusion.model}: a picture came out as not finite; check its weights")
        return (pictures.clip(0, 1) * 255).round().astype(np.uint8)

    def judge(self, asked: Asked, panels: Sequence[Panel], strict: Strict) -> list[list[Shown]] | str:
        reference, target = panels
        for panel in panels:
            if fault := group_fault(panel, asked.n, strict):
                return fault
        order = pair(reference.embeddings, reference.embeddings, target, strict)
        if isinstance(order, str):
            return order
        # Pseudonyms for people who exist nowhere else.
        people = ["g" + hashlib.sha256(reference.data + bytes([k])).hexdigest()[:12] for k in range(asked.n)]
        return [
            [Shown(k, person) for k, person in enumerate(people)],
            [Shown(int(face), person) for face, person in zip(order, people, strict=True)],
        ]

    def terms(self, asked: Asked) -> dict[str, str | None]:
        return {"licence": self.diffusion.licence, "consent": DRAWN}


def halves(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) -> its left and its right half, each (H, W // 2, 3)."""
    width = picture.shape[1] // 2
    return picture[:, :width], picture[:, -width:]


@lru_cache(maxsize=1)
def load(folder: Path, device: str, precision: str) -> Any:
    """The pipeline of a folder, a process's own, kept for its next shard.

    Raises BadInput where a component is missing or damaged, or there is no such device.
    """
    import torch
    from diffusers import DiffusionPipeline

    import umo.customizers.tiny  # noqa: F401 -- the embedded base's own classes, which diffusers imports from nowhere

    dtype: torch.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True
        ).to(device)
    except Exception as error:  # diffusers, transformers, safetensors and torch raise their own
        reason = " ".join(str(error).split())[:160]
        raise BadInput(f"{folder}: cannot be loaded on {device} ({reason}); copy the whole folder again") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
