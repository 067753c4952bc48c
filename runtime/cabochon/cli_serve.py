"""The commands that answer other programs: serve and wyoming. Like cli.py, it prints."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

from cabochon.addresses import is_loopback
from cabochon.cli_arguments import add_model_arguments, load_model, positive_count, seconds
from cabochon.errors import RequestError, missing_dependency
from cabochon.languages import language_name

KEY_VARIABLE = "CABOCHON_API_KEY"


def add_serve_command(commands: Any) -> None:
    """Args: commands: argparse's subparsers."""
    wyoming = commands.add_parser("wyoming", allow_abbrev=False, help="hear for Home Assistant's voice assistants")
    add_model_arguments(wyoming, _serve_wyoming)
    _add_address(wyoming, 10300)
    wyoming.add_argument("--language", help="that is spoken where a client does not say")
    wyoming.add_argument(
        "--to", nargs="+", default=[], metavar="LANGUAGE", help="offer a model that translates into each of these"
    )

    serve = commands.add_parser(
        "serve", allow_abbrev=False, help="answer other programs over HTTP, in the shapes of OpenAI's API"
    )
    add_model_arguments(serve, _serve)
    _add_address(serve, 8642)
    serve.add_argument(
        "--max-megabytes", type=positive_count, default=64, help="largest request (default: %(default)s)"
    )
    serve.add_argument(
        "--allow-host", type=_machine_name, action="append", default=[], metavar="NAME",
        help="under which others address this server, beside --host; may be repeated",
    )  # fmt: skip


def _add_address(parser: argparse.ArgumentParser, port: int) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=positive_count, default=port, help="(default: %(default)s)")
    parser.add_argument("--name", help="of the model, as clients see it (default: that of the package's folder)")
    parser.add_argument(
        "--queue", type=positive_count, default=8, metavar="REQUESTS",
        help="that may wait or be answered; more are refused (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--time-limit", type=seconds, default=600.0, metavar="SECONDS",
        help="for a request, waiting included (default: %(default)g)",
    )  # fmt: skip


def _machine_name(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no name of a machine, such as pi.local (no scheme, no port)"
            ) from None
    return text


def _check_port(arguments: argparse.Namespace) -> None:
    if arguments.port > 65535:
        raise RequestError(f"{arguments.port} is no port: choose one from 1 to 65535.")


def _name(arguments: argparse.Namespace) -> str:
    return arguments.name or Path(arguments.package).resolve().name


def _serve_wyoming(arguments: argparse.Namespace) -> None:
    from cabochon.wyoming_server import WyomingSettings, serve_wyoming

    _check_port(arguments)
    for language in (*arguments.to, *filter(None, [arguments.language])):
        language_name(language)
    if not is_loopback(arguments.host):
        print(f"note: anybody who reaches {arguments.host} is answered.", file=sys.stderr)
    model, _ = load_model(arguments)
    settings = WyomingSettings(
        name=_name(arguments),
        language=arguments.language,
        targets=tuple(arguments.to),
        longest_queue=arguments.queue,
        time_limit=arguments.time_limit,
        max_tokens=arguments.max_tokens,
    )
    address = f"tcp://{arguments.host}:{arguments.port}"

    def say_ready() -> None:
        print(f"note: {address}, Ctrl-C ends it.", file=sys.stderr, flush=True)

    asyncio.run(serve_wyoming(model, settings, arguments.host, arguments.port, say_ready))


def _serve(arguments: argparse.Namespace) -> None:
    try:
        from cabochon.server import ServerSettings, create_app
        from cabochon.server_connections import make_server
    except ImportError as error:
        raise missing_dependency(str(error.name), "server") from None
    _check_port(arguments)
    key = os.environ.get(KEY_VARIABLE, "")
    if not key and not is_loopback(arguments.host):
        print(f"note: anybody who reaches {arguments.host} is answered: set {KEY_VARIABLE}.", file=sys.stderr)
    model, load_seconds = load_model(arguments)
    settings = ServerSettings(
        name=_name(arguments),
        api_key=key,
        longest_queue=arguments.queue,
        time_limit=arguments.time_limit,
        max_bytes=arguments.max_megabytes * 1_000_000,
        max_tokens=arguments.max_tokens,
        host=arguments.host,
        names=tuple(arguments.allow_host),
    )
    listening = _listen(arguments.host, arguments.port)
    server = make_server(create_app(model, settings), arguments.host, arguments.port)
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    address = f"http://{host}:{arguments.port}"
    print(
        f"note: loaded in {load_seconds:.1f} s; {address} in a browser, {address}/v1 for programs, Ctrl-C ends it.",
        file=sys.stderr,
    )
    server.run([listening])


def _listen(host: str, port: int) -> socket.socket:
    """uvicorn would say in words of its own that it cannot, after ours that it does."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(found[4][:2], family=found[0])
    except OSError as error:
        raise RequestError(
            f"{host}:{port} cannot be listened at ({error.strerror}): choose another --host or --port."
        ) from None
