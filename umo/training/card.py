"""The card of a trained LoRA, written from the run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from umo.texts import printable

WHAT = {
    "sft": "Supervised fine-tuning: the diffusion loss alone. It is the control of the methods with a reward.",
    "sir": "ReReFL with the single identity reward (SIR) of arXiv 2509.06818.",
    "mimr": "ReReFL with the multi-identity matching reward (MIMR) of arXiv 2509.06818.",
    "ours": "ReReFL with our reward: everybody who is asked for, once, and like other photographs of them.",
}
HOW = {"rerefl": "ReReFL", "nft": "Negative-aware fine-tuning (DiffusionNFT)", "grpo": "GRPO (Flow-GRPO)"}


def lora_card(run: Mapping[str, Any], base: str, licences: Sequence[str]) -> str:
    """README.md of a LoRA from what stands in training.json, its base's name, and the licences of its pictures."""
    base = printable(base)
    base_model = yaml.safe_dump(base, allow_unicode=True, width=math.inf).partition("\n")[0]  # in quotes where needed
    recipe = "\n".join(f"| `{key}` | {value} |" for key, value in run["recipe"].items())
    use = "measured the validation below, and took no part in the training" if run["method"] == "sft" else "rewarded"
    return f"""---
base_model: {base_model}
library_name: diffusers
tags: [lora, text-to-image, image-customization, umo]
---
# {run["method"]} on {base}

{WHAT[run["method"]].replace("ReReFL", HOW[run["recipe"]["objective"]])}

```python
pipeline.load_lora_weights("path/to/this/folder")  # diffusers, on the same base; draws without references
```

```
umo generate --model path/to/{base} --lora path/to/this/folder --reference A.jpg --prompt "..." --out picture.png
```

## How it was made
{run["updates"]} updates on {run["samples"]} reference sets of {len(run["people"])} people (ids in `training.json`);
{_chosen(run)} Skipped for a loss or gradient that was not finite: {run["skipped"]}.
Face model: {run["reward"]}; it {use}.

{_validation(run["validation"])}

| recipe | |
|---|---|
{recipe}

## What to mind
- Never evaluate it on the people of `training.json`, nor with the network that gave the reward.
- It draws faces of people who are given to it: use photographs only of those who agreed to that.
- Licence of the base: {run["licences"]["base"]}.{_lora_licence(run["licences"])}
- Terms of the pictures that it was trained on: {"; ".join(licences)}.
"""


def _lora_licence(licences: Mapping[str, str]) -> str:
    return f" Licence of the LoRA that it goes on from: {licences['lora']}." if "lora" in licences else ""


def _chosen(run: Mapping[str, Any]) -> str:
    if run["chosen_update"] == 0:
        return "none of them made the validation reward better: **this is the base, untuned**."
    if run["chosen_update"] == run["updates"]:
        return "the weights are those after the last one."
    early = ", after which the run was stopped" if run["stopped_early"] else ""
    return f"the weights are those after update {run['chosen_update']}, the best by validation reward{early}."


def _validation(rows: Sequence[Mapping[str, float]]) -> str:
    """A line a validation; on people who are not trained on, by the network of the reward."""
    names = ("reward", "matched", "unmatched", "no_face", "diffusion_loss")
    lines = ["| update | " + " | ".join(names) + " |", "|---" + "|---" * len(names) + "|"]
    for row in rows:
        lines.append(f"| {row['update']} | " + " | ".join(f"{row[f'validation/{name}']:.3f}" for name in names) + " |")
    return "\n".join(lines)
