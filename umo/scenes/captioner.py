"""A vision-language model of transformers that says in a sentence what a picture shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from umo.errors import BadInput


class Captioner:
    """Greedy, so that a batch of pictures always gets the same text. `name` is that of its folder."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self.name, self._model, self._processor = name, model, processor

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> "Captioner":
        """From a local folder, as transformers saves it; nothing is downloaded and no code in it is run.

        Raises BadInput: no such folder, not a vision-language model, no chat template, or no such device.
        """
        if not (folder / "config.json").is_file():
            raise BadInput(f"{folder}: no model of transformers (config.json is missing); give its folder")
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor = AutoProcessor.from_pretrained(str(folder), **options)
            kind: Any = AutoModelForImageTextToText
            model = kind.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, **options).to(device)
        except Exception as error:  # transformers, tokenizers, safetensors and torch raise their own
            reason = " ".join(str(error).split())[:160]
            raise BadInput(
                f"{folder}: cannot be loaded on {device} as a captioner ({reason}); copy the whole folder again"
            ) from error
        if not getattr(processor, "chat_template", None):
            raise BadInput(f"{folder}: its processor has no chat template: give a model tuned for instructions")
        processor.tokenizer.padding_side = "left"  # what is generated must follow the prompt at once
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        return cls(folder.name, model.requires_grad_(False).eval(), processor)

    @torch.inference_mode()
    def describe(self, pictures: Sequence[np.ndarray], instruction: str, max_tokens: int) -> list[str]:
        """What an instruction makes of each picture, (H, W, 3) uint8 RGB, in one batch; longer answers are cut."""
        asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": instruction}]}]
        prompt = self._processor.apply_chat_template(asked, add_generation_prompt=True)
        inputs = self._processor(
            text=[prompt] * len(pictures),
            images=[[Image.fromarray(picture)] for picture in pictures],
            return_tensors="pt",
            padding=True,
        ).to(self._model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        pad = self._processor.tokenizer.pad_token_id
        tokens = self._model.generate(**inputs, do_sample=False, max_new_tokens=max_tokens, pad_token_id=pad)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return self._processor.batch_decode(new, skip_special_tokens=True)
