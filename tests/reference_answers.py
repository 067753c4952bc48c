"""What transformers' own parts (feature extractor, tokenizer, chat template, generate) answer for a checkpoint."""

from __future__ import annotations

from pathlib import Path

import soundfile
import torch
import transformers

from cabochon.prompt import translation_instruction
from cabochon_convert.processor import PROMPTS


def translate_with_transformers(checkpoint: Path, sounds: list[Path], source: str, target: str) -> dict[str, str]:
    """Greedy answers by file name.

    The parts of Gemma4Processor are called one by one, because the whole wants an image processor, and so torchvision.
    """
    extractor = transformers.AutoFeatureExtractor.from_pretrained(str(checkpoint))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(checkpoint))
    model = transformers.Gemma4ForConditionalGeneration.from_pretrained(str(checkpoint), dtype=torch.float32)
    content = [{"type": "text", "text": translation_instruction(PROMPTS, source, target)}, {"type": "audio"}]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    answers = {}
    for sound in sounds:
        waveform, rate = soundfile.read(sound, dtype="float32")
        features = extractor([waveform], sampling_rate=rate, return_tensors="pt")
        # As Gemma4Processor.replace_audio_token counts.
        count = int(features["input_features_mask"][0, ::2][::2].sum())
        clip = f"{tokenizer.boa_token}{tokenizer.audio_token * count}{tokenizer.eoa_token}"
        prompt = tokenizer(chat.replace(tokenizer.audio_token, clip), add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**prompt, **features, do_sample=False, max_new_tokens=128)
        answers[sound.name] = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers
