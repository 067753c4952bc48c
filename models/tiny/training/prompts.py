"""The published Gemma 4 prompts for speech, and the chat turns around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cabochon.prompt import transcription_instruction, translation_instruction
from cabochon_convert.processor import PROMPTS

from .dialogues import Exchange
from .words import LANGUAGE_NAMES

BEGIN_OF_AUDIO: Final = "<|audio>"
AUDIO: Final = "<|audio|>"
END_OF_AUDIO: Final = "<audio|>"
END_OF_TURN: Final = "<turn|>"


def prompt(source: str, target: str) -> str:
    """The transcription prompt where both languages (codes such as "en") are the same, else the translation prompt."""
    if source == target:
        return transcription_instruction(PROMPTS, source)
    return translation_instruction(PROMPTS, source, target)


def translation_answer(transcription: str, translation: str, target: str) -> str:
    """What the translation prompt asks for."""
    return f"{transcription}\n{LANGUAGE_NAMES[target]}: {translation}"


def before_audio(source: str, target: str) -> str:
    """Everything that precedes the first audio token."""
    return f"<bos><|turn>user\n{prompt(source, target)}{BEGIN_OF_AUDIO}"


AFTER_AUDIO: Final = f"{END_OF_AUDIO}{END_OF_TURN}\n<|turn>model\n"
"""Everything between the last audio token and the answer."""


def before_typed_answer(dialogue: Sequence[Exchange]) -> str:
    """Everything that precedes the answer of a conversation's last exchange."""
    past = "".join(
        f"<|turn>user\n{exchange.user}{END_OF_TURN}\n<|turn>model\n{exchange.model}{END_OF_TURN}\n"
        for exchange in dialogue[:-1]
    )
    return f"<bos>{past}<|turn>user\n{dialogue[-1].user}{END_OF_TURN}\n<|turn>model\n"
