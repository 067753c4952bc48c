"""What package and checkpoint are compared on: a folder of the user's own sounds and typed prompts.

hello.wav            a sound
hello.txt            what is said in it
hello.de.txt         what it means in German: asks for the translation too; any two-letter code, any number of them
prompts.txt          typed prompts, one a line, optionally with a tab and the answer that is expected
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cabochon.errors import CabochonError
from cabochon.languages import NAMES_BY_CODE

SOUND_ENDINGS = (".wav", ".flac", ".ogg", ".mp3")
PROMPTS_NAME = "prompts.txt"


class DataError(CabochonError, ValueError):
    """A folder of evaluation data that cannot be used."""


@dataclass(frozen=True, slots=True)
class Translation:
    """What a sound means in another language."""

    language: str
    text: str


@dataclass(frozen=True, slots=True)
class SpokenExample:
    """A sound file, what is said in it, and what that means in other languages."""

    sound: Path
    text: str
    translations: tuple[Translation, ...] = ()


@dataclass(frozen=True, slots=True)
class TypedPrompt:
    """A request in writing."""

    text: str
    answer: str | None = None
    """None where none is expected: then the checkpoint's own answer is the measure."""


BUILT_IN_PROMPTS = (
    TypedPrompt("Where is the station?"),
    TypedPrompt("Translate into German: The train leaves at eight."),
    TypedPrompt("Name three colours, separated by commas."),
    TypedPrompt("What is 17 plus 25? Answer with the number."),
    TypedPrompt("Write one sentence about the sea."),
    TypedPrompt("Fasse in einem Satz zusammen, was ein Fahrrad ist."),
)
"""Asked when the user brings none."""


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """Everything that is asked."""

    language: str
    """Spoken in all sounds."""
    spoken: tuple[SpokenExample, ...] = ()
    typed: tuple[TypedPrompt, ...] = BUILT_IN_PROMPTS


def read_evaluation_data(folder: Path, language: str) -> EvaluationData:
    """Read a folder of sounds, texts and prompts, in name order.

    Args:
        folder: laid out as above; without a prompts.txt the built-in prompts are asked.
        language: English name of the language that is spoken.

    Raises:
        DataError: there is nothing to compare on, or a text is missing, empty, not text, or belongs to no sound.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: expected sounds with a .txt of the same name beside each.")
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}).") from None
    sounds = [path for path in files if path.suffix.lower() in SOUND_ENDINGS]
    prompts = folder / PROMPTS_NAME
    if not sounds and not prompts.exists():
        raise DataError(f"{folder} has no sound files ({', '.join(SOUND_ENDINGS)}) and no {PROMPTS_NAME}.")
    texts = [path for path in files if path.suffix.lower() == ".txt" and path.name != PROMPTS_NAME]
    translations = _read_translations(texts, {path.stem for path in sounds}, language)
    spoken = tuple(
        SpokenExample(sound, _read_text(sound.with_suffix(".txt")), tuple(translations.get(sound.stem, ())))
        for sound in sounds
    )
    return EvaluationData(language, spoken, _read_prompts(prompts) if prompts.exists() else BUILT_IN_PROMPTS)


def _read_translations(texts: Sequence[Path], stems: set[str], language: str) -> dict[str, list[Translation]]:
    """Translations by the stem of their sound."""
    found: dict[str, list[Translation]] = {}
    for path in texts:
        if path.stem in stems:
            continue
        stem, _, code = path.stem.rpartition(".")
        if stem not in stems:
            raise DataError(f"{path} belongs to no sound: expected one of the same name, such as {path.stem}.wav.")
        target = NAMES_BY_CODE.get(code.lower())
        if target is None:
            raise DataError(
                f"{path} should be a translation, but {code!r} is no two-letter language code: "
                f"name it such as {stem}.de.txt."
            )
        if target == language:
            raise DataError(
                f"{path} is a translation into {target}, which is spoken already: "
                f"write what is said to {stem}.txt, or give another --language."
            )
        found.setdefault(stem, []).append(Translation(target, _read_text(path)))
    return found


def _read_prompts(path: Path) -> tuple[TypedPrompt, ...]:
    prompts = []
    for number, line in enumerate(_read_lines(path), start=1):
        text, tab, answer = (part.strip() for part in line.partition("\t"))
        if not text and not answer:
            continue
        if not text or (tab and not answer) or "\t" in answer:
            raise DataError(f"line {number} of {path} is not a prompt, or a prompt, one tab and its expected answer.")
        prompts.append(TypedPrompt(text, answer or None))
    if not prompts:
        raise DataError(f"{path} is empty: expected one typed prompt a line.")
    return tuple(prompts)


def _read_text(path: Path) -> str:
    """The words of a file, on one line."""
    text = " ".join(" ".join(_read_lines(path)).split())
    if not text:
        raise DataError(f"{path} is empty: expected what is said in the sound of the same name.")
    return text


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} is missing: every sound needs a text file with what is said in it.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text in UTF-8: save it as such.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None
    if "\0" in text:
        raise DataError(f"{path} is not text in UTF-8: save it as such.")
    return text.splitlines()
