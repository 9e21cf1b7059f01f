"""OmniGen2's transformer (VectorSpaceLab/OmniGen2, arXiv 2506.18871), for batches of samples of any sizes.

Blocks, time and caption embedding and the last norm are Lumina 2's, which diffusers has. Its own are the references,
refined each by itself, and the positions. Names of weights and configuration are those of the released folder.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import Timesteps, apply_rotary_emb, get_1d_rotary_pos_embed
from diffusers.models.normalization import LuminaLayerNormContinuous
from diffusers.models.transformers.transformer_lumina2 import (
    Lumina2CombinedTimestepCaptionEmbedding,
    Lumina2TransformerBlock,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

MAX_REFERENCES = 5


class AttentionProcessor:
    """Lumina 2's attention by diffusers' dispatcher, so that `set_attention_backend` chooses its kernel."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None,
        image_rotary_emb: Tensor,
    ) -> Tensor:
        width = attn.inner_dim // attn.heads
        query, key, value = (
            layer(hidden_states).unflatten(-1, (-1, width)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        turned: Any = (
            apply_rotary_emb(norm(heads), image_rotary_emb, use_real=False)
            for norm, heads in ((attn.norm_q, query), (attn.norm_k, key))
        )
        query, key = (heads.to(value.dtype) for heads in turned)
        # Repeated here: not every kernel takes fewer heads of key and value than of query.
        key, value = (heads.repeat_interleave(attn.heads // heads.shape[2], dim=2) for heads in (key, value))
        mask = None if attention_mask is None else attention_mask[:, None, None]
        mixed = dispatch_attention_fn(
            query, key, value, mask, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        return attn.to_out[0](mixed.flatten(2))


class OmniGen2Transformer2DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts `x0 - noise` of each sample's latents.

    Args:
        hidden_size: `num_attention_heads` times the sum of `axes_dim_rope`.
        num_layers, num_refiner_layers: blocks over the whole sequence, and in each of the three refiners.
        num_kv_heads: a divisor of `num_attention_heads`.
        multiple_of, ffn_dim_multiplier: the feed-forward is `ffn_dim_multiplier * 4 * hidden_size` wide, rounded up.
        axes_dim_rope: numbers of a head that each axis of a position turns: place in the sequence, row, column.
        axes_lens: how far the released code's tables of positions go. Here any position can be taken.
        text_feat_dim: width of the text encoder's hidden states.
        timestep_scale: of a time in [0, 1].
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("Lumina2TransformerBlock",)
    _repeated_blocks = ("Lumina2TransformerBlock",)

    @register_to_config
    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 16,
        out_channels: int | None = None,
        hidden_size: int = 2520,
        num_layers: int = 32,
        num_refiner_layers: int = 2,
        num_attention_heads: int = 21,
        num_kv_heads: int = 7,
        multiple_of: int = 256,
        ffn_dim_multiplier: float | None = None,
        norm_eps: float = 1e-5,
        axes_dim_rope: tuple[int, int, int] = (40, 40, 40),
        axes_lens: tuple[int, int, int] = (1024, 1664, 1664),
        text_feat_dim: int = 2048,
        timestep_scale: float = 1000.0,
    ) -> None:
        super().__init__()

        def block(modulation: bool = True) -> nn.Module:
            inner: Any = {"multiple_of": multiple_of, "ffn_dim_multiplier": ffn_dim_multiplier}
            heads = num_attention_heads, num_kv_heads
            made: Any = Lumina2TransformerBlock(hidden_size, *heads, norm_eps=norm_eps, modulation=modulation, **inner)
            made.attn.set_processor(AttentionProcessor())
            return made

        self.patch_size = patch_size
        self.axes = axes_dim_rope
        numbers = patch_size**2 * in_channels
        self.x_embedder = nn.Linear(numbers, hidden_size)
        self.ref_image_patch_embedder = nn.Linear(numbers, hidden_size)
        self.image_index_embedding = nn.Parameter(torch.randn(MAX_REFERENCES, hidden_size))
        self.time_caption_embed = Lumina2CombinedTimestepCaptionEmbedding(hidden_size, text_feat_dim, norm_eps=norm_eps)
        self.time_caption_embed.time_proj = Timesteps(256, True, 0, scale=timestep_scale)  # type: ignore[arg-type]
        self.context_refiner = nn.ModuleList(block(modulation=False) for _ in range(num_refiner_layers))
        self.ref_image_refiner = nn.ModuleList(block() for _ in range(num_refiner_layers))
        self.noise_refiner = nn.ModuleList(block() for _ in range(num_refiner_layers))
        self.layers = nn.ModuleList(block() for _ in range(num_layers))
        self.norm_out = LuminaLayerNormContinuous(
            hidden_size,
            min(hidden_size, 1024),
            elementwise_affine=False,
            eps=1e-6,
            out_dim=patch_size**2 * (out_channels or in_channels),
        )
        self.gradient_checkpointing = False

    def forward(
        self,
        latents: Sequence[Tensor],
        time: Tensor,
        texts: Sequence[Tensor],
        references: Sequence[Sequence[Tensor]],
    ) -> list[Tensor]:
        """The predictions for B samples, B times (C, h, w); none depends on the others.

        Args:
            latents: B times (C, h, w), sides multiples of the patch.
            time: (B,) float32, 0 at the noise and 1 at the picture.
            texts: B times (L, D), hidden states without padding.
            references: B times the latents of up to 5, (C, h, w).
        """
        images = [(*sample, own) for sample, own in zip(references, latents, strict=True)]
        turns = [self._turns(len(text), sample) for text, sample in zip(texts, images, strict=True)]
        timed, captions = self.time_caption_embed(latents[0], time, pad_sequence(list(texts), batch_first=True))
        captions = [caption[: len(text)] for caption, text in zip(captions, texts, strict=True)]
        captions = self._through(self.context_refiner, captions, [own[0] for own in turns])
        people = iter(self._refined(references, [turn for own in turns for turn in own[1:-1]], timed))
        pictures = [self.x_embedder(self._patches(own)) for own in latents]
        pictures = self._through(self.noise_refiner, pictures, [own[-1] for own in turns], timed)
        sequences = [
            torch.cat([caption, *islice(people, len(sample)), picture])
            for caption, sample, picture in zip(captions, references, pictures, strict=True)
        ]
        sequences = self._through(self.layers, sequences, [torch.cat(own) for own in turns], timed)
        drawn = [sequence[-len(picture) :] for sequence, picture in zip(sequences, pictures, strict=True)]
        patches = self.norm_out(pad_sequence(drawn, batch_first=True), timed)
        return [self._unpatched(tokens, own) for tokens, own in zip(patches, latents, strict=True)]

    def _refined(self, references: Sequence[Sequence[Tensor]], turns: Sequence[Tensor], timed: Tensor) -> list[Tensor]:
        """The tokens of all samples' references, one sample's after the other's."""
        rows = [row for row, sample in enumerate(references) for _ in sample]
        if not rows:
            return []
        tokens = [
            self.ref_image_patch_embedder(self._patches(one)) + self.image_index_embedding[place]
            for sample in references
            for place, one in enumerate(sample)
        ]
        return self._through(self.ref_image_refiner, tokens, turns, timed[rows])

    def _through(
        self, blocks: Iterable[nn.Module], parts: Sequence[Tensor], turns: Sequence[Tensor], timed: Tensor | None = None
    ) -> list[Tensor]:
        """Sequences (N, D), padded to one length, through blocks; each attends to itself alone."""
        lengths = [len(part) for part in parts]
        tokens, turn = (pad_sequence(list(some), batch_first=True) for some in (parts, turns))
        own = [torch.ones(length, dtype=torch.bool, device=tokens.device) for length in lengths]
        mask = pad_sequence(own, batch_first=True) if min(lengths) < max(lengths) else None
        for block in blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, mask, turn, timed)
            else:
                tokens = block(tokens, mask, turn, timed)
        return [row[:length] for row, length in zip(tokens, lengths, strict=True)]

    def _turns(self, text: int, images: Sequence[Tensor]) -> list[Tensor]:
        """Rotary embedding, complex (N, head's width / 2), of a caption of so many tokens and of each image after it.

        A token of the caption is at its place on all three axes; an image's tokens are at their row and column, and all
        at one place in the sequence, as far behind the image before as that one's longer side.
        """
        size, device = self.patch_size, images[0].device
        positions = [torch.arange(text, device=device)[:, None].expand(-1, 3)]
        place = text
        for image in images:
            rows, columns = (side // size for side in image.shape[1:])
            spans = (place, place + 1), (0, rows), (0, columns)
            positions.append(torch.cartesian_prod(*(torch.arange(*span, device=device) for span in spans)))
            place += max(rows, columns)
        axes: Any = zip(self.axes, torch.cat(positions).unbind(1), strict=True)
        turns = [get_1d_rotary_pos_embed(width, axis, freqs_dtype=torch.float64) for width, axis in axes]
        return list(torch.cat(turns, dim=1).to(torch.complex64).split([len(part) for part in positions]))

    def _patches(self, image: Tensor) -> Tensor:
        """(C, h, w) -> (N, C * size ** 2), a token's numbers in the order row, column, channel."""
        size = self.patch_size
        cut = image.unflatten(2, (-1, size)).unflatten(1, (-1, size))
        return cut.permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)

    def _unpatched(self, tokens: Tensor, like: Tensor) -> Tensor:
        """The inverse, for an image of that height and width; tokens behind it are padding."""
        size = self.patch_size
        rows, columns = (side // size for side in like.shape[1:])
        cut = tokens[: rows * columns].unflatten(1, (size, size, -1)).unflatten(0, (rows, columns))
        return cut.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)
