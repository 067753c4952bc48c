"""The audio encoder for the next piece of a sound, with what the pieces before it left behind.

The maths is that of transformers' `Gemma4AudioModel`, whose modules do the work; only what looks back is here: the
convolutions in time and attention. A piece is one block: its tokens see themselves, and as many before them as a block
of the whole sound does, at the same distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cabochon_convert.audio_encoder_onnx import FRAMES_PER_TOKEN


class AudioStepModule(torch.nn.Module):
    """Some frames [1, 4 N, mel bins] to features [1, N, features], and states to what they become."""

    def __init__(self, tower: Any) -> None:
        """Args: tower: transformers' Gemma4AudioModel, whose sinusoids are projected to constants."""
        super().__init__()
        self._tower = tower
        config = tower.config
        self._chunk, self._size = config.attention_chunk_size, config.hidden_size
        self._layers = tower.layers[: config.num_hidden_layers]

    def states(self, mel_bins: int) -> dict[str, torch.Tensor]:
        """What precedes a sound, by name; silence, and tokens that are not there."""
        layers, config = len(self._layers), self._tower.config
        return {
            "past_frames": torch.zeros(1, FRAMES_PER_TOKEN, mel_bins),
            "past_mask": torch.zeros(1, self._chunk),
            "past_keys": torch.zeros(layers, self._chunk, self._size),
            "past_values": torch.zeros(layers, self._chunk, self._size),
            "past_gated": torch.zeros(layers, config.conv_kernel_size - 1, self._size),
        }

    def forward(
        self,
        src_inputs: torch.Tensor,
        mask: torch.Tensor,
        past_frames: torch.Tensor,
        past_mask: torch.Tensor,
        past_keys: torch.Tensor,
        past_values: torch.Tensor,
        past_gated: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """One step.

        Args:
            src_inputs: [1, 4 N, mel bins].
            mask: bool [1, 1, 4 N], false for what fills the last piece up.
            past_frames: [1, 4, mel bins] before the piece.
            past_mask: [1, chunk], 1 for each token before it that there was.
            past_keys: [layers, chunk, hidden] of these tokens.
            past_values: the same.
            past_gated: [layers, kernel size - 1, hidden] that the convolution of each layer saw last.

        Returns:
            features [1, N, features], their mask bool [1, N], and next_… for each past_….
        """
        heard = mask.squeeze(1).to(src_inputs.dtype)
        frames = torch.cat([past_frames, src_inputs], dim=1)
        # Zeros before the sound come to the zeros that the convolutions add, for they have no biases.
        before = torch.ones(1, FRAMES_PER_TOKEN, dtype=heard.dtype)
        x, token_mask = self._tower.subsample_conv_projection(frames, torch.cat([before, heard], dim=1))
        # Without the token of the frames before.
        x, token_mask = x[:, 1:], token_mask[:, 1:]
        all_mask = torch.cat([past_mask, token_mask], dim=1)
        bias = self._attention_bias(all_mask)
        states: dict[str, list[torch.Tensor]] = {"next_keys": [], "next_values": [], "next_gated": []}
        for index, layer in enumerate(self._layers):
            past = past_keys[index : index + 1], past_values[index : index + 1], past_gated[index : index + 1]
            x, *nexts = self._layer(layer, x, bias, past)
            for parts, part in zip(states.values(), nexts, strict=True):
                parts.append(part)
        return {
            "features": self._tower.output_proj(x),
            "mask": token_mask > 0,
            "next_frames": frames[:, -FRAMES_PER_TOKEN:],
            "next_mask": all_mask[:, -self._chunk :],
            **{name: torch.cat(parts) for name, parts in states.items()},
        }

    def _attention_bias(self, all_mask: torch.Tensor) -> torch.Tensor:
        """[1, 1, N, chunk + N]: what is added to the logits of what a token must not see."""
        chunk = self._chunk
        count = all_mask.shape[1] - chunk
        distance = chunk + torch.arange(count)[:, None] - torch.arange(chunk + count)[None]
        window = ((distance >= 0) & (distance < chunk)).to(all_mask.dtype)
        seen = window * all_mask[:, None, None]
        return (1 - seen) * self._tower.config.attention_invalid_logits_value

    def _layer(
        self, layer: Any, x: torch.Tensor, bias: torch.Tensor, past: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Gemma4AudioLayer: [1, N, hidden], and keys, values and gated values for the next piece."""
        keys, values, gated = past
        x = layer.feed_forward1(x)
        normed = layer.norm_pre_attn(_clip(layer, x))
        attended, keys, values = self._attend(layer.self_attn, normed, bias, keys, values)
        x = layer.norm_post_attn(_clip(layer, attended)) + x
        x, gated = _convolve(layer.lconv1d, x, gated)
        x = layer.feed_forward2(x)
        return layer.norm_out(_clip(layer, x)), keys, values, gated

    def _attend(
        self, attention: Any, x: torch.Tensor, bias: torch.Tensor, past_keys: torch.Tensor, past_values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gemma4AudioAttention over [1, chunk + N, hidden]."""
        count, heads = x.shape[1], attention.num_heads

        def split(y: torch.Tensor) -> torch.Tensor:
            return y.view(1, -1, heads, attention.head_dim).transpose(1, 2)

        query = split(attention.q_proj(x)) * attention.q_scale * torch.nn.functional.softplus(attention.per_dim_scale)
        keys = torch.cat([past_keys, attention.k_proj(x) * attention.k_scale], dim=1)
        values = torch.cat([past_values, attention.v_proj(x)], dim=1)
        relative = split(attention.relative_k_proj(x)).transpose(2, 3)
        logits = query @ split(keys).transpose(2, 3) + _shift(query @ relative, self._chunk + count)
        logits = torch.tanh(logits / attention.softcap) * attention.softcap
        weights = torch.softmax(logits + bias, dim=-1)
        attended = (weights @ split(values)).transpose(1, 2).reshape(1, count, -1)
        return attention.post(attended), keys[:, -self._chunk :], values[:, -self._chunk :]


def _shift(x: torch.Tensor, width: int) -> torch.Tensor:
    """Logits by distance [1, heads, N, chunk + 1] to logits by key [1, heads, N, chunk + N], as in Transformer-XL."""
    _, heads, count, distances = x.shape
    filled = torch.cat([x, torch.zeros(1, heads, count, width + 1 - distances)], dim=-1)
    flat = filled.reshape(1, heads, count * (width + 1))[..., : count * width]
    return flat.reshape(1, heads, count, width)


def _convolve(convolution: Any, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gemma4AudioLightConv1d, whose zeros on the left are what came before."""
    y = torch.nn.functional.glu(convolution.linear_start(convolution.pre_layer_norm(x)), dim=-1)
    gated = torch.cat([past, y], dim=1)
    kernel = convolution.depthwise_conv1d
    y = torch.nn.functional.conv1d(gated.transpose(1, 2), kernel.weight, kernel.bias, groups=kernel.groups)
    y = convolution.conv_norm(_clip(convolution, y.transpose(1, 2)))
    return convolution.linear_end(convolution.act_fn(y)) + x, gated[:, -past.shape[1] :]


def _clip(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Gradient clipping of the training code, which clips values."""
    bound = min(module.gradient_clipping, torch.finfo(x.dtype).max)
    return torch.clamp(x, -bound, bound)
