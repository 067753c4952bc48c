"""Prompts with images, videos and sounds in transformers: its tokens, logits and greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.gemma4.processing_gemma4 import Gemma4Processor
from transformers.video_utils import VideoMetadata

from cabochon.arrays import Float32Array

VIDEO_BRANCH = "{%- elif part['type'] == 'video' -%}{{- '<|video|>' -}}"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: arrays uint8 [rows, columns, RGB], videos as lists of them, a second apart."""

    text: str
    images: tuple[np.ndarray, ...] = ()
    videos: tuple[tuple[np.ndarray, ...], ...] = ()
    frames: Float32Array | None = None
    """Of a sound, as the audio encoder takes it, with the number of tokens that it makes."""
    audio_tokens: int = 0
    role: str = "user"


def let_template_show_videos(checkpoint: Path) -> None:
    """As the published template does; that of models/tiny knows no videos."""
    path = checkpoint / "chat_template.jinja"
    image = "{%- elif part['type'] == 'image' -%}"
    template = path.read_text()
    assert image in template
    path.write_text(template.replace(image, VIDEO_BRANCH + image))


class SeeingReference:
    """A checkpoint in transformers, with the replacements that its processor makes.

    Gemma4Processor cannot be made without torchvision, which its video processor needs; its methods can be called.
    """

    def __init__(self, checkpoint: Path, budget: int = 280, frame_budget: int = 70) -> None:
        transformers.utils.logging.disable_progress_bar()
        self._model = transformers.Gemma4ForConditionalGeneration.from_pretrained(
            str(checkpoint), dtype=torch.float32
        ).eval()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(checkpoint))
        self._template = (checkpoint / "chat_template.jinja").read_text()
        self._budgets = budget, frame_budget
        kinds = {"image_token": "image", "video_token": "video", "boi_token": "boi", "eoi_token": "eoi"}
        tokens = {name: getattr(self._model.config, f"{kind}_token_id") for name, kind in kinds.items()}
        texts = {name: self._tokenizer.convert_ids_to_tokens(token) for name, token in tokens.items()}
        self._names = SimpleNamespace(**texts)

    def inputs(self, turns: Sequence[Turn]) -> dict[str, Any]:
        """What the model's forward pass takes."""
        messages = [{"role": turn.role, "content": self._content(turn)} for turn in turns]
        text = self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
        )
        inputs: dict[str, Any] = {}
        images = [image for turn in turns for image in turn.images]
        if images:
            made = self._process(images, self._budgets[0])
            inputs["pixel_values"], inputs["image_position_ids"] = made["pixel_values"], made["image_position_ids"]
            text = self._replaced(text, self._names.image_token, [
                Gemma4Processor.replace_image_token(self._names, made, index) for index in range(len(images))
            ])  # fmt: skip
        videos = [video for turn in turns for video in turn.videos]
        if videos:
            all_frames = [self._process(video, self._budgets[1]) for video in videos]
            inputs["pixel_values_videos"] = torch.cat([made["pixel_values"] for made in all_frames])
            inputs["video_position_ids"] = torch.cat([made["image_position_ids"] for made in all_frames])
            inputs["num_frames_per_video"] = torch.tensor([len(video) for video in videos])
            facts = {
                "num_soft_tokens_per_video": [int(made["num_soft_tokens_per_image"][0]) for made in all_frames],
                "video_metadata": [
                    VideoMetadata(total_num_frames=len(video), fps=1.0, frames_indices=list(range(len(video))))
                    for video in videos
                ],
            }
            text = self._replaced(text, self._names.video_token, [
                Gemma4Processor.replace_video_token(self._names, facts, index) for index in range(len(videos))
            ])  # fmt: skip
        tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        config = self._model.config
        heard = [turn for turn in turns if turn.frames is not None]
        if heard:
            (turn,) = heard
            clip = [config.boa_token_id, *[config.audio_token_id] * turn.audio_tokens, config.eoa_token_id]
            tokens = [each for token in tokens for each in (clip if token == config.audio_token_id else [token])]
            inputs["input_features"] = torch.from_numpy(turn.frames[None])
            inputs["input_features_mask"] = torch.ones(inputs["input_features"].shape[:2], dtype=torch.bool)
        return inputs | {"input_ids": torch.tensor([tokens])}

    def answer(self, inputs: dict[str, Any], count: int, suppress: Sequence[int]) -> tuple[Float32Array, str]:
        """Logits after the last position [vocabulary], as they are before sampling, and the next tokens, greedily."""
        with torch.no_grad():
            step = self._model(**inputs, logits_to_keep=1, use_cache=True)
            first, new = step.logits[0, -1].numpy().copy(), []
            while True:
                step.logits[0, -1, list(suppress)] = -torch.inf
                new.append(int(step.logits[0, -1].argmax()))
                if len(new) == count:
                    return first, str(self._tokenizer.decode(new, skip_special_tokens=True))
                step = self._model(
                    input_ids=torch.tensor([new[-1:]]), past_key_values=step.past_key_values, logits_to_keep=1
                )

    def _content(self, turn: Turn) -> str | list[dict[str, str]]:
        if not turn.images and not turn.videos and turn.frames is None:
            return turn.text
        media = [{"type": "image"}] * len(turn.images) + [{"type": "video"}] * len(turn.videos)
        return [*media, {"type": "text", "text": turn.text}, *([{"type": "audio"}] if turn.frames is not None else [])]

    def _process(self, images: Sequence[np.ndarray], budget: int) -> Any:
        size = self._model.config.vision_config.patch_size
        processor = Gemma4ImageProcessorPil(patch_size=size, max_soft_tokens=budget)
        made = processor([PIL.Image.fromarray(image) for image in images], return_tensors="pt")
        return dict(made) | {"pixel_values": made["pixel_values"].float()}

    @staticmethod
    def _replaced(text: str, token: str, written: list[str]) -> str:
        parts = text.split(token)
        assert len(parts) == len(written) + 1
        return "".join(part for pair in zip(parts, [*written, ""], strict=True) for part in pair)
