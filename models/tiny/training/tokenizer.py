"""A byte-fallback BPE tokenizer of the phrasebook, with Gemma 4's control tokens and chat template.

The fixed parts of the prompts are learned too, each to a single token in the end, so that a prompt costs under 20
tokens of a short context instead of a hundred. Run as a script it writes tokenizer.json,
tokenizer_config.json and chat_template.jinja.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from .dialogues import draw_dialogue, translation_request
from .phrasebook import draw
from .prompts import prompt, translation_answer
from .words import LANGUAGE_NAMES, LANGUAGES

VOCABULARY_SIZE: Final = 3072
_CORPUS_SENTENCES: Final = 30_000
_CORPUS_SEED: Final = 40
_CONTROL_TOKENS_TEXT: Final = """
<pad> <eos> <bos> <unk> <mask> <|turn> <turn|> <|channel> <channel|> <|think|> <|tool> <tool|> <|tool_call> <tool_call|>
<|tool_response> <tool_response|> <|"|> <|image> <|image|> <image|> <|audio> <|audio|> <audio|> <|video|>"""
CONTROL_TOKENS: Final = _CONTROL_TOKENS_TEXT.split()
"""Their ids are their places here."""
_BYTE_TOKENS: Final = [f"<0x{byte:02X}>" for byte in range(256)]
_SPACE: Final = "\u2581"  # stands for a space inside tokens
_PIECE_END: Final = "\x1f"  # separates what merges must not cross; occurs in no text
_PROMPT_MERGES: Final = 224
"""Places kept in the vocabulary for the fixed parts of the prompts."""

CHAT_TEMPLATE: Final = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- elif part['type'] == 'audio' -%}
                {{- '<|audio|>' -}}
            {%- elif part['type'] == 'image' -%}
                {{- '<|image|>' -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|turn>model\\n' -}}
{%- endif -%}
"""


def token_id(token: str) -> int:
    """Id of a control token."""
    return CONTROL_TOKENS.index(token)


def _words(text: str) -> list[str]:
    """Words with the space before them, single digits, and anything else character by character."""
    return re.findall(r" ?[^\W\d_]+| ?\d|[^\w]|_", text)


def _prompts() -> list[str]:
    pairs = list(itertools.product(LANGUAGES, LANGUAGES))
    return [prompt(*pair) for pair in pairs] + [translation_request("", *pair) for pair in pairs if len(set(pair)) == 2]


def _prompt_parts() -> set[str]:
    """Prompts cut at the names of languages and at line ends."""
    names = "|".join(f" ?{name}" for name in LANGUAGE_NAMES.values())
    return {part for text in _prompts() for part in re.split(rf"({names}|\n+)", text) if part}


def _corpus() -> Iterator[str]:
    """Texts for the trainer, pieces ended by `_PIECE_END`."""
    generator = random.Random(_CORPUS_SEED)
    words: Counter[str] = Counter()
    for _ in range(_CORPUS_SENTENCES):
        for text in draw(generator, held_out=False).written.values():
            words.update(_words(text))
    for _ in range(_CORPUS_SENTENCES // 4):
        for exchange in draw_dialogue(generator, held_out=False):
            words.update(_words(exchange.user) + _words(exchange.model))
    for target in LANGUAGES:
        words.update(_words(translation_answer("", "", target)))
    for text in _prompts():
        words.update(_words(text))
    words.update(["user", "model", "system"])
    for word, count in words.items():
        yield (word + _PIECE_END) * count.bit_length()


def _merge_prompts(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Appends what makes one token of each fixed part of the prompts, at the end, where it changes no other text."""
    for part in sorted(_prompt_parts()):
        text = part.replace(" ", _SPACE)
        while len(tokens := Tokenizer(models.BPE(vocabulary, merges)).encode(text).tokens) > 1:
            vocabulary[tokens[0] + tokens[1]] = len(vocabulary)
            merges.append((tokens[0], tokens[1]))


def train_tokenizer() -> Tokenizer:
    """The tokenizer, its vocabulary filled up to `VOCABULARY_SIZE` with unused tokens."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", _SPACE)
    learner.pre_tokenizer = pre_tokenizers.Split(_PIECE_END, "removed")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - _PROMPT_MERGES,
        special_tokens=CONTROL_TOKENS + _BYTE_TOKENS,
        initial_alphabet=[chr(code) for code in range(0x21, 0x7F)],
        show_progress=False,
    )
    learner.train_from_iterator(_corpus(), trainer)
    learned = json.loads(learner.to_str())["model"]
    vocabulary: dict[str, int] = learned["vocab"]
    merges = [(left, right) for left, right in learned["merges"]]
    _merge_prompts(vocabulary, merges)
    for identifier in range(len(vocabulary), VOCABULARY_SIZE):
        vocabulary[f"<unused{identifier}>"] = identifier
    return _assemble(vocabulary, merges)


def _assemble(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """The parts that Gemma's own tokenizer.json has: no pre-tokenizer that would split, unknown characters as bytes."""
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL_TOKENS])
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """What tokenizer_config.json says: which control token plays which part."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Gemma4Processor",
        "model_max_length": 2048,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "extra_special_tokens": {
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
            "sot_token": "<|turn>",
            "eot_token": "<turn|>",
            "soc_token": "<|channel>",
            "eoc_token": "<channel|>",
            "think_token": "<|think|>",
        },
    }


def write_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    train_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the three files go")
    write_tokenizer(parser.parse_args().folder)


if __name__ == "__main__":
    main()
