"""What the decoder holds of a prompt is not run again."""

from __future__ import annotations

from counting_decoder import EMBEDDER, CountingDecoder
from hypothesis import given
from hypothesis import strategies as st

from cabochon.decode import prefill
from cabochon.held_context import HeldContext

PROMPTS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@given(
    st.lists(st.tuples(PROMPTS, st.lists(st.integers(0, 3), max_size=5), st.booleans()), max_size=6), st.integers(0, 9)
)
def test_the_decoder_holds_the_prompt_whatever_it_held_before(
    turns: list[tuple[list[int], list[int], bool]], earliest: int
) -> None:
    decoder = CountingDecoder(100)
    context = HeldContext(decoder)
    for prompt, answer, is_whole in turns:
        decoder.earliest_position = earliest if len(decoder.held) > earliest else 0
        before = list(decoder.held)
        start = context.keep(prompt)
        assert start == 0 or start >= decoder.earliest_position
        assert start < len(prompt)
        assert before[:start] == prompt[:start]
        decoder.runs.clear()
        prefill(decoder, EMBEDDER.embed(prompt[start:]), start)
        context.was_run(prompt)
        assert decoder.runs == [(start, len(prompt) - start)]
        assert decoder.held == prompt
        # Each token of the answer is run before the next is chosen; the last one is not.
        for index, token in enumerate(answer):
            if index:
                decoder.run(*run_of(answer[index - 1]), len(prompt) + index - 1)
            context.chose(token)
        if is_whole and answer:
            decoder.run(*run_of(answer[-1]), len(prompt) + len(answer) - 1)
            context.chose(None)
        held = context.read()
        assert held is not None
        assert decoder.held[: len(held[0])] == held[0]
        assert len(held[0]) >= len(prompt)


def run_of(token: int) -> tuple:
    step = EMBEDDER.embed([token])
    return step.inputs_embeds, step.per_layer_inputs


def test_nothing_is_kept_of_what_was_forgotten() -> None:
    decoder = CountingDecoder(100)
    context = HeldContext(decoder)
    assert context.keep([1, 2, 3]) == 0
    context.was_run([1, 2, 3])
    assert context.keep([1, 2, 3]) == 2
    context.was_run([1, 2, 3])
    assert context.keep([1, 2]) == 1
    context.forget()
    assert context.read() is None
    assert context.keep([1, 2, 3]) == 0
    # Of a prompt that failed only what was kept is held.
    assert context.read() is None
