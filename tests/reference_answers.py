"""What transformers' own pipeline (processor, chat template, generate) answers for a checkpoint."""

from __future__ import annotations

from pathlib import Path

import soundfile
import torch
import transformers

from cabochon.prompt import translation_instruction
from cabochon_convert.processor import PROMPTS


def translate_with_transformers(checkpoint: Path, sounds: list[Path], source: str, target: str) -> dict[str, str]:
    """Greedy answers by file name, through AutoProcessor and generate."""
    processor = transformers.AutoProcessor.from_pretrained(str(checkpoint))
    model = transformers.Gemma4ForConditionalGeneration.from_pretrained(str(checkpoint), dtype=torch.float32)
    instruction = translation_instruction(PROMPTS, source, target)
    answers = {}
    for sound in sounds:
        waveform, _ = soundfile.read(sound, dtype="float32")
        content = [{"type": "text", "text": instruction}, {"type": "audio", "audio": waveform}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=128)
        new_tokens = output[0, inputs["input_ids"].shape[1] :]
        answers[sound.name] = processor.decode(new_tokens, skip_special_tokens=True)
    return answers
