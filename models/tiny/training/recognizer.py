"""What transformers' own parts (feature extractor, tokenizer, chat template, generate) answer for a checkpoint.

The parts of Gemma4Processor are called one by one, because the whole wants an image processor, and so torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from cabochon.arrays import Float32Array
from cabochon_convert.audio_frontend import DEFAULT_LOG_MEL

from .prompts import AUDIO, BEGIN_OF_AUDIO, END_OF_AUDIO

SAMPLE_RATE: Final = DEFAULT_LOG_MEL.sample_rate
LONGEST_ANSWER: Final = 72
"""Tokens; the longest right one of this model has 60."""


class Recognizer:
    """A checkpoint folder, run by transformers in float32 on the CPU."""

    def __init__(self, folder: Path, longest_answer: int = LONGEST_ANSWER) -> None:
        self._longest_answer = longest_answer
        self._model: Any = transformers.Gemma4ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self._model.eval()
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self._feature_extractor: Any = transformers.AutoFeatureExtractor.from_pretrained(folder)

    def answers(self, waveforms: Sequence[Float32Array], instruction: str) -> list[str]:
        """Greedy answers for a batch of clips, all with the same instruction before the audio."""
        features = self._feature_extractor(list(waveforms), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        content = [{"type": "text", "text": instruction}, {"type": "audio"}]
        chat: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        # As Gemma4Processor.replace_audio_token counts.
        counts = [int(mask[::2][::2].sum()) for mask in features["input_features_mask"]]
        texts = [chat.replace(AUDIO, f"{BEGIN_OF_AUDIO}{AUDIO * count}{END_OF_AUDIO}") for count in counts]
        return self._generate(
            texts,
            input_features=features["input_features"],
            input_features_mask=features["input_features_mask"],
        )

    def typed_answers(self, questions: Sequence[str]) -> list[str]:
        """Greedy answers to typed questions, each a conversation of its own."""
        chats = [
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
            for question in questions
        ]
        return self._generate(chats)

    def _generate(
        self,
        texts: Sequence[str],
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
    ) -> list[str]:
        tokens = self._tokenizer(list(texts), add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.no_grad():
            generated = self._model.generate(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                input_features=input_features,
                input_features_mask=input_features_mask,
                do_sample=False,
                max_new_tokens=self._longest_answer,
            )
        decoded: list[str] = self._tokenizer.batch_decode(
            generated[:, tokens["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return decoded
