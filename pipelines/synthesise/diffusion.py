"""Scenes drawn by a diffusion model. All is drawn and measured; then, in seconds, the strict filter keeps some."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from pipelines.core.bases import Params as Bases
from pipelines.core.params import Section, load
from pipelines.core.shards import ONE_PROCESS, Machine, Shard, digest, tree_digest
from pipelines.core.shards import run as run_shards
from pipelines.synthesise.base import Scenes, layout_row
from pipelines.synthesise.drawn import DRAWN, Asked, Drawer, Measure, Shown, draw_and_measure, read
from pipelines.synthesise.params import Diffusion, Params
from pipelines.synthesise.strict import Panel
from umo import faces


class Nothing(Section):
    """What drawing depends on is in its shards: a changed threshold must not draw anew."""


@dataclass(frozen=True)
class Diffused:
    """The generator `diffusion`."""

    params: Params
    drawer: Drawer
    machine: Machine = field(default=ONE_PROCESS, compare=False)
    files: Sequence[Path] = ()

    @classmethod
    def of(cls, params: Params, machine: Machine) -> "Diffused":
        """With the customizer or the text-to-image pipeline that params.yaml names.

        Raises:
            BadInput: there is no such model.
        """
        from pipelines.synthesise.customized import Customized
        from pipelines.synthesise.diptychs import Diptychs

        assert params.diffusion
        bases = load("bases")
        assert isinstance(bases, Bases)
        drawer: Drawer
        if base := bases.root.get(params.diffusion.model):
            drawer = Customized(params, params.diffusion, base, machine.device)
        else:
            drawer = Diptychs.of(params, params.diffusion, machine.device, list(bases.root))
        return cls(params, drawer, machine)

    @property
    def diffusion(self) -> Diffusion:
        assert self.params.diffusion
        return self.params.diffusion

    @property
    def knobs(self) -> Params:
        return self.params.model_copy(update={"scenes": {}})

    def shards(self) -> list[Shard]:
        """Draws and measures what is not drawn yet; the drawings are the shards' inputs."""
        asked = self.drawer.asked()
        self._draw(asked)
        return [
            Shard(name, {"drawn": tree_digest(DRAWN / name), "asked": digest([asdict(case) for case in cases])}, cases)
            for name, cases in asked.items()
        ]

    def _draw(self, asked: dict[str, list[Asked]]) -> None:
        measure = Measure(**load("measure").model_dump(include={"faces", "min_score", "min_side"}))
        how = self.diffusion.model_dump(mode="json", include={"seeds", "size", "steps", "guidance", "precision"})
        common = {"how": digest(how), "measure": digest(asdict(measure)), **self.drawer.model_inputs()}
        shards = [
            Shard(
                name, {"asked": digest([case.what() for case in cases]), **common, **self.drawer.inputs(cases)}, cases
            )
            for name, cases in asked.items()
        ]
        run_shards(
            "synthesise",
            partial(draw_and_measure, self.drawer, measure),
            shards,
            DRAWN,
            params=Nothing(),
            files=faces.load(measure.faces).files,
            machine=self.machine,
        )

    def scenes(self, shard: Shard) -> Scenes:
        made = Scenes()
        drawings = read(DRAWN / shard.name)
        assert isinstance(shard.task, list)
        for asked in shard.task:
            taken = 0
            for rank, panels in enumerate(drawings[asked.name]):
                verdict = self.drawer.judge(asked, panels, self.diffusion.strict)
                if isinstance(verdict, list) and taken == self.diffusion.strict.max_scenes:
                    verdict = f"over {self.diffusion.strict.max_scenes} of its case"
                origin = {"source": "diffusion", "group": f"diffusion/{asked.name}", **self.drawer.terms(asked)}
                if isinstance(verdict, str):
                    image_id = digest("rejected", self.diffusion.model, asked.what(), rank)
                    made.reject(shard.name, image_id, verdict, path=f"{asked.name}/{rank}", **origin)
                    continue
                taken += 1
                for role, panel, shown in zip(self.drawer.halves, panels, verdict, strict=True):
                    path = f"{asked.name}/{rank}/{role}" if len(panels) > 1 else f"{asked.name}/{rank}"
                    _add(made, shard.name, asked, role, panel, shown, {**origin, "path": path})
        return made

    def finish(self) -> None:
        """Leave the drawings in .work/synthesise alone, where the next run finds them by their key."""
        shutil.rmtree(DRAWN, ignore_errors=True)


def _add(
    made: Scenes,
    shard: str,
    asked: Asked,
    role: str,
    panel: Panel,
    shown: Sequence[Shown],
    origin: Mapping[str, object],
) -> None:
    """The rows of an accepted panel, people from left to right."""
    ordered = sorted(shown, key=lambda one: panel.centres[one.face])
    image_id = made.add(shard, panel.data, panel.size, **origin)
    made.layout += [
        layout_row(image_id, position, one.person_id, panel.boxes[one.face], role) | one.source
        for position, one in enumerate(ordered)
    ]
    if role == "target":
        text = asked.prompt_at([float(panel.centres[one.face]) for one in ordered])
        described = {"generator": "diffusion", "background": asked.described[-1].background, "prompt": text}
        made.scenes.append({"image_id": image_id, "n": asked.n, "split": asked.split, **described})
