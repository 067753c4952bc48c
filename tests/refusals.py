"""What every test of a bad input asserts: the one expected error, told in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cabochon.errors import CabochonError


@contextmanager
def refused(error: type[CabochonError], *words: str) -> Iterator[None]:
    """The block raises exactly this error, and its one line holds these words."""
    with pytest.raises(error) as caught:
        yield
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1, sentence
    assert sentence.endswith("."), sentence
    assert "Traceback" not in sentence
    for word in words:
        assert word in sentence
