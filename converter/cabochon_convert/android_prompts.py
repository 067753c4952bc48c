"""The chat template around an instruction and a sound, as text: a phone has no Jinja."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cabochon.errors import PackageError
from cabochon.package import Package
from cabochon.prompt import ChatTemplate, Message, PromptWriter, translation_instruction
from cabochon.tokenizer import Tokenizer

_INSTRUCTION = "instruction"
_COMPARED_PAIRS = 6


@dataclass(frozen=True, slots=True)
class SpeechPrompt:
    """A prompt is `before_instruction`, the instruction, `before_audio`, the audio tokens and `after_audio`."""

    before_instruction: str
    before_audio: str
    after_audio: str


def speech_prompt(package: Package, languages: Sequence[str]) -> SpeechPrompt:
    """What the chat template puts around an instruction and a sound.

    Args:
        languages: for whose instructions the tokens are compared with those of the template itself.

    Raises:
        PackageError: the template writes something else for another instruction.
    """
    manifest, tokenizer = package.manifest, Tokenizer(package.path(package.manifest.tokenizer_file))
    assert manifest.audio is not None  # a package that hears nothing is refused before
    source = package.path(manifest.chat_template_file).read_text(encoding="utf-8")
    template = ChatTemplate(source, bos_token=tokenizer.token_text(manifest.bos_token))
    text = template.render([Message("user", _INSTRUCTION, has_audio=True)])
    soft_token = tokenizer.token_text(manifest.audio.soft_token)
    before, found_instruction, rest = text.partition(_INSTRUCTION)
    between, found_audio, after = rest.partition(soft_token)
    prompt = SpeechPrompt(before, between, after)
    writer = PromptWriter(package, tokenizer)
    pairs = zip(languages, [*languages[1:], languages[0]], strict=True)
    instructions = [translation_instruction(manifest.prompts, *pair) for pair in list(pairs)[:_COMPARED_PAIRS]]
    clip = _one_clip(tokenizer, package)
    same = all(
        tokenizer.encode(f"{before}{instruction}{between}{clip}{after}")
        == writer.write([Message("user", instruction, has_audio=True)], 1)
        for instruction in instructions
    )
    if not (found_instruction and found_audio and same):
        raise PackageError(
            f"the chat template of {package.folder} does not put its text around an instruction and a sound: the app "
            "cannot write its prompts, so take the template of the original checkpoint."
        )
    return prompt


def _one_clip(tokenizer: Tokenizer, package: Package) -> str:
    audio = package.manifest.audio
    assert audio is not None
    return "".join(map(tokenizer.token_text, (audio.begin_token, audio.soft_token, audio.end_token)))
