"""The command that converses: chat. Like cli.py, it prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cabochon.answer import Answer
from cabochon.cli_arguments import add_model_arguments, count, load_model, note_cut, number, positive_count
from cabochon.cli_forms import add_form_arguments, print_tool_calls, read_answer_format, read_tools
from cabochon.conversation import Conversation
from cabochon.errors import RequestError
from cabochon.pipeline import Model
from cabochon.sampling import SamplingSettings
from cabochon.sight import SightSettings

SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def add_chat_command(commands: Any) -> None:
    """Args: commands: argparse's subparsers."""
    chat = commands.add_parser("chat", allow_abbrev=False, help="converse in text, about images, videos and sounds too")
    add_model_arguments(chat, _chat)
    chat.add_argument("prompt", nargs="?", help="one question; without it, lines are read from standard input")
    chat.add_argument("--system", help="instruction that precedes the conversation")
    chat.add_argument(
        "--conversation", type=Path, metavar="FILE",
        help="go on with the conversation in this file if there is one, and keep it there",
    )  # fmt: skip
    chat.add_argument(
        "--think", type=positive_count, nargs="?", const=True, default=False, metavar="TOKENS",
        help="let the model think first, in as many tokens at most; its thoughts go to standard error",
    )  # fmt: skip
    chat.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end answers before this text; may be repeated"
    )
    chat.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    chat.add_argument("--temperature", type=number, help="of sampling (default: the checkpoint's, as all of these)")
    chat.add_argument("--top-k", type=count, help="candidates to choose from; 0: all")
    chat.add_argument("--top-p", type=number, help="probability that candidates hold together")
    chat.add_argument("--min-p", type=number, help="probability of a candidate, as a share of the likeliest one's")
    chat.add_argument("--repetition-penalty", type=number, help="more than 1 avoids what was there before")
    chat.add_argument("--seed", type=count, help="make the sampling repeatable")
    add_form_arguments(chat)
    chat.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="the first question is about it; may be repeated"
    )
    chat.add_argument("--image-tokens", type=positive_count, default=0, help="most tokens of an image, e.g. 70 or 280")
    chat.add_argument(
        "--video", action="append", default=[], metavar="FILE", help="video of at most a minute, or a folder of images"
    )
    chat.add_argument("--sound", metavar="FILE", help="sound of at most half a minute, heard with the first question")
    chat.add_argument("--frame-tokens", type=positive_count, default=0, help="most tokens of a video's frame")


def _chat(arguments: argparse.Namespace) -> None:
    tools, answer_format = read_tools(arguments), read_answer_format(arguments)
    images, videos, sound = arguments.image, arguments.video, arguments.sound
    sight = SightSettings(arguments.image_tokens, arguments.frame_tokens)
    model, _ = load_model(arguments)
    settings = _settings(model, arguments)
    conversation = _conversation(model, arguments)
    for question in _questions(arguments.prompt):
        answer = conversation.ask(
            model.quote(question), settings, arguments.max_tokens, stop=arguments.stop, thinking=arguments.think,
            tools=tools, answer_format=answer_format, images=images, videos=videos, sound=sound, sight=sight,
        )  # fmt: skip
        images, videos, sound = [], [], None
        if answer.note:
            print(f"note: {answer.note}", file=sys.stderr)
        _print(answer)
        print_tool_calls(answer)
        note_cut(answer)
        if arguments.conversation:
            conversation.save(arguments.conversation)


def _settings(model: Model, arguments: argparse.Namespace) -> SamplingSettings:
    sampling = model.package.manifest.sampling
    default = SamplingSettings() if arguments.greedy else SamplingSettings.of_checkpoint(sampling)
    given = {name: value for name in SETTINGS if (value := getattr(arguments, name)) is not None}
    if arguments.greedy and given.keys() - {"repetition_penalty"}:
        raise RequestError("with --greedy nothing is drawn: leave it out, or the settings of sampling.")
    return replace(default, **given)


def _conversation(model: Model, arguments: argparse.Namespace) -> Conversation:
    path: Path | None = arguments.conversation
    if path is None or not path.exists():
        return model.start_conversation(model.quote(arguments.system) if arguments.system else None)
    if arguments.system:
        raise RequestError(f"{path} has begun already: leave --system out, or choose another file.")
    return model.load_conversation(path)


def _questions(prompt: str | None) -> Iterator[str]:
    """The one prompt, or the lines of standard input with a sign when a person types them."""
    if prompt is not None:
        yield prompt
        return
    while sys.stdin is not None:
        if sys.stdin.isatty():
            print("> ", end="", flush=True, file=sys.stderr)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _print(answer: Answer) -> None:
    """The answer as it comes, and thoughts beside it."""
    shown, begun = 0, False
    for piece in answer:
        thoughts = answer.thoughts
        if len(thoughts) > shown:
            print(thoughts[shown:], end="", flush=True, file=sys.stderr)
            shown, begun = len(thoughts), True
        elif piece and begun:
            print(file=sys.stderr)
            begun = False
        print(piece, end="", flush=True)
    if answer.text or not answer.tool_calls:
        print(flush=True)
