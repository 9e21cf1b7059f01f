"""The embedded base's own parts, beside diffusers' and transformers' classes: linear autoencoder, word tokenizer."""

from collections.abc import Iterable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import IdentityDistribution
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Principal components of square patches: exact for what they span, and free of training.

    The components of an 8x8 patch are laid out as 2x2 latent pixels, so that FLUX's packing makes them one token.

    Args:
        latent_channels: a quarter of the components kept a patch.
        block_out_channels: only its length counts, as in AutoencoderKL: a latent pixel covers 2 ** (length - 1) pixels.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        block_out_channels: tuple[int, ...] = (1, 1, 1),
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch = 2 ** len(block_out_channels)
        kept, numbers = 4 * latent_channels, 3 * self.patch**2
        self.mean = nn.Parameter(torch.zeros(numbers), requires_grad=False)
        self.basis = nn.Parameter(torch.eye(kept, numbers), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(kept), requires_grad=False)

    @torch.no_grad()
    def fit(self, images: Iterable[Tensor], power: float = 0.6) -> "PatchAutoencoder":
        """Find the components of pictures (3, H, W) in [-1, 1] whose sides are multiples of the patch.

        Args:
            power: a component is divided by its deviation to this power: 1 makes all alike, 0 keeps their sizes. In
                between, noise drowns fine detail before it drowns what matters (0.6: measured on faces).
        """
        patches = torch.cat([F.unfold(image[None], self.patch, stride=self.patch)[0].T for image in images]).double()
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / max(1, len(patches) - 1))
        kept = len(self.scale)
        deviation = values.flip(0)[:kept].clamp(min=1e-6).sqrt()
        basis = vectors.flip(1)[:, :kept].T
        # The sign of a component is arbitrary and depends on the machine: the largest entry is made positive.
        basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
        for parameter, value in ((self.mean, mean), (self.basis, basis), (self.scale, deviation**power)):
            parameter.copy_(value)
        return self

    def encode(self, images: Tensor) -> SimpleNamespace:
        """(B, 3, H, W) -> `latent_dist` of (B, C, h, w), a distribution without width."""
        kernel = (self.basis / self.scale[:, None]).unflatten(1, (3, self.patch, self.patch))
        bias = -(self.basis @ self.mean) / self.scale
        components = F.conv2d(images, kernel, bias, stride=self.patch)
        return SimpleNamespace(latent_dist=IdentityDistribution(F.pixel_shuffle(components, 2)))

    def decode(self, latents: Tensor, return_dict: bool = True) -> SimpleNamespace | tuple[Tensor]:
        """(B, C, h, w) -> `sample` (B, 3, H, W)."""
        components = F.pixel_unshuffle(latents, 2)
        kernel = (self.basis * self.scale[:, None]).unflatten(1, (3, self.patch, self.patch))
        images = F.conv_transpose2d(components, kernel, stride=self.patch)
        rows, columns = components.shape[2:]
        images = images + self.mean.unflatten(0, (3, self.patch, self.patch)).repeat(1, rows, columns)
        return SimpleNamespace(sample=images) if return_dict else (images,)


def word_tokenizer(prompts: Iterable[str], length: int) -> PreTrainedTokenizerFast:
    """A token a word or mark of the prompts, lower case, in alphabetic order; other words become one unknown."""
    split = pre_tokenizers.Whitespace()
    words = sorted({word for prompt in prompts for word, _ in split.pre_tokenize_str(prompt.lower())})
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, vocabulary[token]) for token in ("<s>", "</s>")]
    )
    named = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **named)
