"""A small OmniGen2 with random weights: the folder that the released code drew the golden pictures with."""

from pathlib import Path

from peft import LoraConfig
from safetensors.torch import load_file

from umo.customizers import Guidance, load
from umo.customizers.omnigen2.adapter import OmniGen2

GOLDEN = Path(__file__).parent / "omnigen2_golden"


def small_omnigen2() -> OmniGen2:
    base: OmniGen2 = load(GOLDEN / "folder")  # type: ignore[assignment]
    small = {"sizes": ((32, 64),), "min_side": 32, "max_side": 256, "steps": 4}
    drawn = {"guidance": Guidance(text=2, image=1.5), "negative": "bad"}
    base.settings = base.settings.model_copy(update=small | drawn)
    base.transformer.norm_out.linear_2.weight *= 0.3  # predictions about as large as what is to be learnt
    return base


def load_as_umo(base: OmniGen2, lora: Path) -> None:
    """By the lines of bytedance/UMO for OmniGen2, which say nothing of a key that is left over."""
    state = load_file(lora)
    rank = len(state["layers.0.attn.to_q.lora_A.default.weight"])
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    base.transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    found = base.transformer.load_state_dict(state, strict=False)
    assert not found.unexpected_keys and not [key for key in found.missing_keys if ".lora_" in key]
