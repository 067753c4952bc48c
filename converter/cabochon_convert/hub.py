"""Fetching a checkpoint from the Hugging Face hub into its cache: only the files that a conversion reads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cabochon.errors import missing_dependency
from cabochon_convert.checkpoint import CheckpointError
from cabochon_convert.work_folder import NO_SPACE

try:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import disable_progress_bars, logging
except ImportError as error:
    raise missing_dependency(str(error.name), "convert") from None

# An adapter's config is fetched for the sake of the error that names it.
WANTED = [
    "adapter_config.json",
    "chat_template*",
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*",
]
# Patterns match across slashes: folders hold other forms of the same weights, as do consolidated files.
UNWANTED = ["*/*", "consolidated*"]
WANTED_OF_ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def download_checkpoint(name: str, revision: str | None) -> Path:
    """The folder in the hub's cache, named after the commit, with a model's files; downloads those that it lacks.

    Shows the hub's own bars on standard error if that is a terminal.

    Args:
        name: ORGANISATION/MODEL.
        revision: branch, tag or commit; None for the main branch.

    Raises:
        CheckpointError: the hub does not know the model or withholds it, the network or the disk does not suffice.
    """
    return _download(name, revision, WANTED, "config.json", "a Hugging Face checkpoint")


def download_adapter(name: str, revision: str | None) -> Path:
    """The folder in the hub's cache with the files of a LoRA adapter; like `download_checkpoint`."""
    return _download(name, revision, WANTED_OF_ADAPTER, "adapter_config.json", "a LoRA adapter")


def _download(name: str, revision: str | None, wanted: list[str], needed: str, expected: str) -> Path:
    logging.set_verbosity_error()
    if not sys.stderr.isatty() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    with _errors_in_one_sentence(name, revision):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=UNWANTED))
    if not (folder / needed).is_file():
        # Without the hub's list of files, which older versions did not keep, an offline cache passes for whole.
        raise CheckpointError(f"{name} has no {needed}: expected {expected}, or a network if its download was cut off.")
    return folder


@contextmanager
def _errors_in_one_sentence(name: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except GatedRepoError:
        raise CheckpointError(
            f"{name} is behind a licence: accept it at {constants.ENDPOINT}/{name} and {_LOG_IN}."
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{name} is neither a folder on this disk nor a model that the hub shows to you: correct the name, or "
            f"{_LOG_IN} if the model is private."
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(
            f"{name} has no revision {revision} on the hub: expected a branch, a tag or a whole commit hash."
        ) from None
    except LocalEntryNotFoundError as error:
        raise _not_in_cache(name, error.__cause__) from None
    except HfHubHTTPError as error:
        raise _refusal(name, error) from None
    except (HTTPError, RuntimeError) as error:  # RuntimeError: hf_xet, which carries large files
        raise _broken_off(name, error) from None
    except OSError as error:
        if error.errno in NO_SPACE:
            raise CheckpointError(
                f"the disk of {constants.HF_HUB_CACHE} is full: free some space, or set HF_HOME to a folder elsewhere."
            ) from None
        if error.strerror:
            place = error.filename or constants.HF_HUB_CACHE
            raise CheckpointError(f"{place} cannot be written ({error.strerror}).") from None
        raise _broken_off(name, error) from None
    except ValueError as error:
        raise CheckpointError(
            f"the hub cannot be asked for {name} ({_first_line(error)}): expected the id of a model."
        ) from None


def _not_in_cache(name: str, cause: BaseException | None) -> CheckpointError:
    """The hub could not be asked, and the cache does not do."""
    if isinstance(cause, HfHubHTTPError):
        return _refusal(name, cause)
    missing = f"{name} is not a folder on this disk, and as a model of the hub it is not completely in the cache"
    if isinstance(cause, OfflineModeIsEnabled):
        return CheckpointError(f"{missing}, while HF_HUB_OFFLINE forbids to download it: unset that variable.")
    reason = f" ({_first_line(cause)})" if cause else ""
    return CheckpointError(f"{missing}, while the hub cannot be reached{reason}: connect this machine to a network.")


def _refusal(name: str, error: HfHubHTTPError) -> CheckpointError:
    status = error.response.status_code
    if status in (401, 403):
        return CheckpointError(f"the hub does not give {name} to the owner of your token: {_LOG_IN}, with another one.")
    return CheckpointError(f"the hub answered with status {status} when asked for {name}: try again later.")


def _broken_off(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the download of {name} broke off ({_first_line(error)}): start again, complete files are kept."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
