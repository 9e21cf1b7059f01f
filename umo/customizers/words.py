"""What of a prompt a base's tokenizers have no token for."""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from umo.customizers.base import Customizer


def unknown_words(customizer: Customizer, prompts: Sequence[str]) -> list[list[str]]:
    """For each prompt of mostly unknown words, those that none of the base's tokenizers knows; for any other, none.

    A tokenizer that spells words out in bytes knows all.
    """
    words = [re.findall(r"\w+", prompt) for prompt in prompts]
    asked = sorted({word for own in words for word in own})
    tokenizers = [part for part in vars(customizer).values() if isinstance(part, PreTrainedTokenizerBase)]
    if not asked or not tokenizers:
        return [[] for _ in prompts]
    known: set[str] = set()
    for tokenizer in tokenizers:
        tokens = tokenizer(asked, add_special_tokens=False).input_ids
        known |= {word for word, own in zip(asked, tokens, strict=True) if tokenizer.unk_token_id not in own}
    unknown = [[word for word in own if word not in known] for own in words]
    return [few if 2 * len(few) > len(own) else [] for few, own in zip(unknown, words, strict=True)]
