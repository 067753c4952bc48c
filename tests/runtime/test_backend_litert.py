"""How the LiteRT engine drives a decoder: which signature takes which positions, in which caches.

The decoder is that of `litert_decoder.py`, whose answers are known exactly.
"""

from __future__ import annotations

import fcntl
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ai_edge_litert
import numpy as np
import pytest
from commands import run_command
from hypothesis import given
from hypothesis import strategies as st
from litert_decoder import (
    HIDDEN,
    LAYERS,
    VOCABULARY,
    WIDTH,
    expected_hidden_state,
    expected_logits,
    write_package,
)
from refusals import refused

from cabochon.backend import LONGEST_RUN, EngineSettings
from cabochon.backend_litert import LitertDecoder, open_litert_session
from cabochon.backend_litert_models import refuse_fatal_library
from cabochon.errors import PackageError, RequestError
from cabochon.machine import ARM_FEATURES, Processor
from cabochon.package import Package

RUNS = ((4, 8), (1, 8), (1, 16), (4, 16), (8, 16), (16, 64), (1, 64))
"""Positions and length of caches of each signature."""
CONTEXT_LENGTH = 60
"""Not a whole run more than the second caches hold, and fewer than the longest do."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return write_package(tmp_path_factory.mktemp("decoder"), RUNS, CONTEXT_LENGTH)


@pytest.fixture(scope="module")
def drafting_package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return write_package(tmp_path_factory.mktemp("drafting"), RUNS, CONTEXT_LENGTH, verified=3)


@pytest.fixture(scope="module", params=["package", "drafting_package"])
def shared_decoder(request: pytest.FixtureRequest) -> LitertDecoder:
    return open_decoder(request.getfixturevalue(request.param))


@pytest.fixture
def decoder(package: Package) -> LitertDecoder:
    return open_decoder(package)


def open_decoder(package: Package, context_length: int = 0) -> LitertDecoder:
    settings = EngineSettings(threads=1, context_length=context_length)
    return LitertDecoder(package, package.manifest.engines["litert"], settings)


@dataclass(slots=True)
class Chat:
    """What was run so far, beside the decoder that ran it."""

    decoder: LitertDecoder
    seed: int = 0
    embeddings: np.ndarray = field(default_factory=lambda: np.zeros((0, HIDDEN)))
    per_layer: np.ndarray = field(default_factory=lambda: np.zeros((0, LAYERS * WIDTH)))

    def run(self, position: int, count: int, logits_to_keep: int = 1) -> None:
        """Run new rows from a position on, and compare all logits."""
        generator = np.random.default_rng([self.seed, len(self.embeddings), position, count])
        rows, layer_rows = (generator.integers(-9, 10, (count, size)) for size in (HIDDEN, LAYERS * WIDTH))
        self.embeddings = np.concatenate([self.embeddings[:position], rows])
        self.per_layer = np.concatenate([self.per_layer[:position], layer_rows])
        found = self.decoder.run(rows.astype(np.float32), layer_rows.astype(np.float32), position, logits_to_keep)
        assert found.shape == (logits_to_keep, VOCABULARY)
        for index in range(logits_to_keep):
            end = position + count - logits_to_keep + 1 + index
            wanted = expected_logits(self.embeddings[:end], self.per_layer[:end])
            assert np.array_equal(found[index], wanted), f"position {end - 1} of {position} to {position + count}"
            if self.decoder._current.answering(1, 0).gives_hidden_states:
                hidden = self.decoder.hidden_states[index]
                assert np.array_equal(hidden, expected_hidden_state(self.embeddings[:end]))


@pytest.fixture
def calls(decoder: LitertDecoder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The signatures that the decoder has run."""
    return note_calls(decoder, monkeypatch)


def note_calls(decoder: LitertDecoder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    model: Any = decoder._model
    run = model.run_by_name

    def note_and_run(name: str, *buffers: Any) -> None:
        names.append(name)
        run(name, *buffers)

    monkeypatch.setattr(model, "run_by_name", note_and_run)
    return names


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Runs of a chat: position, count, and logits to keep; each starts behind the last one, before, or at 0."""
    end, found = 0, []
    for _ in range(draw(st.integers(1, 8))):
        position = draw(st.sampled_from([end, end, end, 0]) | st.integers(0, end))
        if position == CONTEXT_LENGTH:
            position = draw(st.integers(0, end - 1))
        room = CONTEXT_LENGTH - position
        count = min(room, draw(st.integers(1, 6) | st.integers(1, CONTEXT_LENGTH)))
        found.append((position, count, draw(st.sampled_from([1, 1, count]) | st.integers(0, count))))
        end = position + count
    return found


@given(runs=steps(), seed=st.integers(0, 99))
def test_every_position_sees_all_before_it_and_nothing_else(
    shared_decoder: LitertDecoder, runs: list[tuple[int, int, int]], seed: int
) -> None:
    # One decoder for all examples: what the last one left in the caches must not matter.
    chat = Chat(shared_decoder, seed)
    for position, count, logits_to_keep in runs:
        chat.run(position, count, logits_to_keep)


def test_a_prompt_fills_up_one_run_and_its_last_position_is_a_step(decoder: LitertDecoder, calls: list[str]) -> None:
    Chat(decoder).run(0, 4)
    assert calls == ["prefill_4_cache_8", "decode_cache_8"]


def test_long_prompts_take_the_longest_runs_and_then_the_shortest_that_is_enough(
    decoder: LitertDecoder, calls: list[str]
) -> None:
    Chat(decoder).run(0, 12)
    assert calls == ["prefill_8_cache_16", "prefill_4_cache_16", "decode_cache_16"]


def test_near_the_end_of_the_cache_positions_are_run_one_by_one(decoder: LitertDecoder, calls: list[str]) -> None:
    chat = Chat(decoder)
    chat.run(0, 5)
    calls.clear()
    # A run of four from 5 on would write up to 8, and the last row over an older one.
    chat.run(5, 3)
    assert calls == ["decode_cache_8"] * 3


def test_a_rest_far_shorter_than_any_run_is_run_one_by_one(decoder: LitertDecoder, calls: list[str]) -> None:
    chat = Chat(decoder)
    chat.run(0, 20)
    calls.clear()
    chat.run(20, 2)
    assert calls == ["decode_cache_64"] * 2
    calls.clear()
    chat.run(22, 3)
    assert calls == ["prefill_16_cache_64", "decode_cache_64"]


def test_drafts_are_verified_in_one_run_and_longer_ones_in_several(
    drafting_package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = open_decoder(drafting_package)
    calls = note_calls(decoder, monkeypatch)
    chat = Chat(decoder)
    chat.run(0, 20)
    assert calls == ["prefill_16_cache_64", "prefill_16_cache_64", "decode_cache_64"]
    calls.clear()
    chat.run(20, 3, 3)
    assert calls == ["verify_3_cache_64"]
    calls.clear()
    # Of these the first two were accepted; a run is filled up for two more.
    chat.run(22, 5, 5)
    assert calls == ["verify_3_cache_64"] * 2
    assert decoder.shortest_run == 16


def test_drafts_near_the_end_of_a_cache_are_verified_one_by_one(
    drafting_package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = open_decoder(drafting_package)
    calls = note_calls(decoder, monkeypatch)
    chat = Chat(decoder)
    chat.run(0, 6)
    calls.clear()
    # A filled up run of three would write row 8, which the cache has not.
    chat.run(6, 2, 2)
    assert calls == ["decode_cache_8"] * 2
    calls.clear()
    chat.run(7, 3, 3)
    assert calls == ["verify_3_cache_16"]


def test_the_shortest_run_of_several_positions_is_known(decoder: LitertDecoder, tmp_path: Path) -> None:
    assert decoder.shortest_run == 4
    assert open_decoder(write_package(tmp_path, ((1, 8),), 8)).shortest_run == 1


def test_a_chat_moves_to_longer_caches_when_it_must_and_back_when_it_starts_anew(
    decoder: LitertDecoder, calls: list[str]
) -> None:
    chat = Chat(decoder)
    lengths = []
    for position, count in ((0, 6), (6, 2), (8, 1), (9, 6), (15, 2), (17, 1), (3, 1), (4, 1), (0, 3), (3, 14)):
        calls.clear()
        chat.run(position, count)
        lengths.append({int(name.rpartition("_")[2]) for name in calls})
    assert lengths == [{8}, {8}, {16}, {16}, {64}, {64}, {64}, {64}, {8}, {64}]


def test_as_many_logits_as_asked_for_are_given_up_to_all_of_them(decoder: LitertDecoder) -> None:
    chat = Chat(decoder)
    chat.run(0, 7, 7)
    chat.run(7, 9, 4)
    chat.run(5, 1, 1)


def test_a_context_shorter_than_the_packages_needs_no_longer_caches(package: Package) -> None:
    decoder = open_decoder(package, 7)
    assert decoder.capacity == 7
    chat = Chat(decoder)
    chat.run(0, 5)
    chat.run(5, 2)
    assert [steps.length for steps in decoder._steps if steps._runs] == [8]
    with pytest.raises(ValueError, match="7"):
        chat.run(7, 1)


def test_a_context_longer_than_the_packages_is_refused(package: Package) -> None:
    with refused(RequestError, str(CONTEXT_LENGTH), str(CONTEXT_LENGTH + 1), "--context-length"):
        open_decoder(package, CONTEXT_LENGTH + 1)


@pytest.mark.parametrize(
    ("position", "count", "logits_to_keep"),
    [(-1, 1, 1), (CONTEXT_LENGTH, 1, 1), (0, CONTEXT_LENGTH + 1, 1), (0, 0, 0), (0, 2, -1), (0, 2, 3), (9, 2, 1),
     (0, LONGEST_RUN + 1, 1)],
)  # fmt: skip
def test_runs_that_are_impossible_change_nothing(
    decoder: LitertDecoder, calls: list[str], position: int, count: int, logits_to_keep: int
) -> None:
    chat = Chat(decoder)
    chat.run(0, 6)
    calls.clear()
    with pytest.raises(ValueError, match=r"position|cache"):
        decoder.run(
            np.zeros((count, HIDDEN), np.float32), np.zeros((count, LAYERS * WIDTH), np.float32), position,
            logits_to_keep,
        )  # fmt: skip
    assert calls == []
    chat.run(6, 1)


def test_a_package_that_promises_more_than_its_decoder_holds_is_refused(tmp_path: Path) -> None:
    package = write_package(tmp_path, ((4, 8), (1, 8)), 9)
    with refused(PackageError, "decoder.tflite", "8", "9"):
        open_decoder(package)


def test_a_session_without_an_audio_encoder_has_none(package: Package) -> None:
    session = open_litert_session(package, EngineSettings(threads=1))
    assert session.audio_encoder is None
    assert session.decoder.capacity == CONTEXT_LENGTH


# A part of a flatbuffer would end the process: `open_package` lets none through.
@pytest.mark.parametrize("damage", ["nothing", "text", "missing", "zeros"])
def test_a_damaged_graph_is_refused_in_one_sentence(tmp_path: Path, damage: str) -> None:
    package = write_package(tmp_path, RUNS, CONTEXT_LENGTH)
    path = tmp_path / "decoder.tflite"
    size = path.stat().st_size
    path.unlink()
    if damage != "missing":
        path.write_bytes({"nothing": b"", "text": b"TFL3 " * (size // 5), "zeros": bytes(size)}[damage])
    with refused(PackageError, str(path)):
        open_decoder(package)


WHOLE_LIFE = """
import sys
from pathlib import Path
import numpy as np
from litert_decoder import HIDDEN, LAYERS, WIDTH, write_package
from cabochon.backend import EngineSettings
from cabochon.backend_litert import open_litert_session
package = write_package(Path(sys.argv[1]), ((4, 8), (1, 8)), 8)
decoder = open_litert_session(package, EngineSettings(threads=1)).decoder
decoder.run(np.zeros((6, HIDDEN), np.float32), np.zeros((6, LAYERS * WIDTH), np.float32), 0)
print("done")
print("the process's own words", file=sys.stderr)
"""


def test_a_process_says_nothing_of_its_engine_from_beginning_to_end(tmp_path: Path) -> None:
    search_path = os.pathsep.join(each for each in sys.path if each)
    result = run_command(sys.executable, "-c", WHOLE_LIFE, tmp_path, PYTHONPATH=search_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "the process's own words\n")


@pytest.fixture
def weight_cache(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the decoder's weights are kept in between two starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Chat(open_decoder(package)).run(0, 3)
    (path,) = (tmp_path / "cabochon" / "xnnpack").glob("*.weights")
    return path


def test_weights_are_kept_for_the_next_start(package: Package, weight_cache: Path) -> None:
    first = weight_cache.stat()
    assert first.st_size > 4 * VOCABULARY**2
    Chat(open_decoder(package)).run(0, 3)
    assert weight_cache.stat().st_mtime_ns == first.st_mtime_ns
    assert list(weight_cache.parent.glob("*.weights")) == [weight_cache]


@pytest.mark.parametrize("content", [b"", b"garbage", b"\0" * 5000, None])
def test_damaged_weights_are_made_anew(package: Package, weight_cache: Path, content: bytes | None) -> None:
    whole = weight_cache.read_bytes()
    weight_cache.write_bytes(whole[: len(whole) // 2] if content is None else content)
    Chat(open_decoder(package)).run(0, 3)
    assert weight_cache.stat().st_size == len(whole)


@pytest.mark.parametrize("place", ["a file", "a read-only folder", "a folder in place of the weights", "nowhere"])
def test_where_weights_cannot_be_kept_it_only_costs_time(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    base = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere" if place == "nowhere" else str(base))
    if place == "a file":
        base.write_bytes(b"")
    elif place == "a read-only folder":
        (base / "cabochon" / "xnnpack").mkdir(parents=True)
        # Whoever may write everywhere is told by the system that it is so: the answer is made up for them.
        monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path).is_relative_to(base) and mode == os.W_OK))
    elif place == "a folder in place of the weights":
        record = package.manifest.files[0]
        (base / "cabochon" / "xnnpack" / f"{record.sha256[:32]}-{ai_edge_litert.__version__}.weights").mkdir(
            parents=True
        )
    Chat(open_decoder(package)).run(0, 3)
    if place == "a read-only folder":
        assert not list((base / "cabochon" / "xnnpack").iterdir())


@pytest.mark.parametrize(
    ("features", "architecture", "there", "refuses"),
    [
        (("asimd",), "aarch64", True, True), (("asimd",), "aarch64", False, False), (("asimd",), "x86_64", True, False),
        (("asimd", "asimdhp", "asimddp"), "aarch64", True, False), ((), "arm64", True, False),
    ],
)  # fmt: skip
def test_a_library_that_would_end_the_program_is_refused_before(
    tmp_path: Path, features: tuple[str, ...], architecture: str, there: bool, refuses: bool
) -> None:
    library = tmp_path / "library.so"
    if there:
        library.write_bytes(b"")
    processor = Processor("Cortex-A72", architecture, features, ARM_FEATURES, 4, 4)
    with refused(RequestError, "asimddp", "library.so", "delete") if refuses else nullcontext():
        refuse_fatal_library(processor, library)


def test_one_process_at_a_time_makes_the_file_of_sorted_weights(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    open_decoder(package)
    (lock,) = (tmp_path / "cabochon" / "xnnpack").glob("*.lock")
    with lock.open("w") as held, ThreadPoolExecutor(1) as other:
        fcntl.flock(held, fcntl.LOCK_EX)
        opened = other.submit(open_decoder, package)
        with pytest.raises(TimeoutError):
            opened.result(timeout=1)
        fcntl.flock(held, fcntl.LOCK_UN)
        Chat(opened.result(timeout=60)).run(0, 3)
