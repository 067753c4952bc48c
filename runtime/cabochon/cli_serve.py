"""The command that answers other programs: serve. Like cli.py, it prints."""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from pathlib import Path
from typing import Any

from cabochon.cli_arguments import add_model_arguments, load_model, positive_count, seconds
from cabochon.errors import RequestError, missing_dependency

KEY_VARIABLE = "CABOCHON_API_KEY"


def add_serve_command(commands: Any) -> None:
    """Args: commands: argparse's subparsers."""
    serve = commands.add_parser("serve", help="answer other programs over HTTP, in the shapes of OpenAI's API")
    add_model_arguments(serve, _serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    serve.add_argument("--port", type=positive_count, default=8642, help="(default: %(default)s)")
    serve.add_argument("--name", help="of the model, as clients see it (default: that of the package's folder)")
    serve.add_argument(
        "--queue", type=positive_count, default=8, metavar="REQUESTS",
        help="that may wait or be answered; more are refused (default: %(default)s)",
    )  # fmt: skip
    serve.add_argument(
        "--time-limit", type=seconds, default=600.0, metavar="SECONDS",
        help="for a request, waiting included (default: %(default)g)",
    )  # fmt: skip
    serve.add_argument(
        "--max-megabytes", type=positive_count, default=64, help="largest request (default: %(default)s)"
    )


def _serve(arguments: argparse.Namespace) -> None:
    try:
        import uvicorn

        from cabochon.server import ServerSettings, create_app
    except ImportError as error:
        raise missing_dependency(str(error.name), "server") from None
    if arguments.port > 65535:
        raise RequestError(f"{arguments.port} is no port: choose one from 1 to 65535.")
    key = os.environ.get(KEY_VARIABLE, "")
    if not key and not _is_loopback(arguments.host):
        print(f"note: anybody who reaches {arguments.host} is answered: set {KEY_VARIABLE}.", file=sys.stderr)
    model, load_seconds = load_model(arguments)
    settings = ServerSettings(
        name=arguments.name or Path(arguments.package).resolve().name,
        api_key=key,
        longest_queue=arguments.queue,
        time_limit=arguments.time_limit,
        max_bytes=arguments.max_megabytes * 1_000_000,
        max_tokens=arguments.max_tokens,
    )
    server = uvicorn.Server(
        uvicorn.Config(create_app(model, settings), arguments.host, arguments.port, log_level="warning")
    )
    print(
        f"note: loaded in {load_seconds:.1f} s; http://{arguments.host}:{arguments.port}/v1, Ctrl-C ends it.",
        file=sys.stderr,
    )
    try:
        server.run()
    except SystemExit:  # uvicorn has told why
        raise RequestError(
            f"{arguments.host}:{arguments.port} cannot be listened at: choose another --host or --port."
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
