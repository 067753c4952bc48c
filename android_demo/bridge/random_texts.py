"""Random texts and what Python's tokenizer makes of them, for another process to compare itself with.

python random_texts.py TOKENIZER COUNT SEED

Writes a line of JSON for each: `text`, null where the tokens were drawn and not the text; `tokens`; what they are
`decoded` to, and how they are `written` with control tokens.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import tokenizers

SCRIPTS = (
    (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x530, 0x58F), (0x590, 0x5FF),
    (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF), (0xE00, 0xE7F), (0x10A0, 0x10FF), (0x1100, 0x11FF),
    (0x1200, 0x137F), (0x1780, 0x17FF), (0x2000, 0x206F), (0x2070, 0x21FF), (0x2580, 0x259F), (0x3040, 0x30FF),
    (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xFB00, 0xFDFF), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF),
    (0x1F1E6, 0x1F1FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0xE0000, 0xE007F), (0x10FFF0, 0x10FFFF),
)  # fmt: skip
BLANKS = (
    "",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n\n",
    "\r\n",
    "\t",
    "\t\t\t",
    "\u00a0",
    "\u2003",
    "\u200b",
    "▁",
    "▁ ▁",
    " " * 40,
)
JOINED = (
    "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇫🇷", "e\u0301", "n\u0303o", "한국어", "ไทย", "नमस्ते", "السلام عليكم", "שָׁלוֹם",
    "日本語です", "Ǆ", "ﬁ", "İ", "ß", "\x00", "\x07", "\x7f", "\ufeff", "\ufffd", "\ufffe", "\u2028",
)  # fmt: skip
CODE = (
    "def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {\n\t\tsum += a[i];\n}\n", "</div>\n<br/>",
    '{"key": [1, 2.5, null]}', "SELECT * FROM t WHERE a != 'b';", "$HOME/.cache/*.{a,b}", "#!/bin/sh\nset -e\n",
    r"\frac{1}{2}\\", "https://example.org/a?b=c&d=%20#e", "λ x → x ∘ f", "---\n| a | b |\n|---|---|\n",
)  # fmt: skip


def main() -> None:
    """Write the lines that were asked for."""
    path, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    chance = random.Random(seed)
    draw = _drawer(tokenizer, chance)
    all_tokens = sorted(tokenizer.get_vocab(with_added_tokens=True).values())
    byte_tokens = [
        token for token in (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)) if token is not None
    ]
    with open(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False) as output:
        for number in range(count):
            # Models answer with tokens that no text is split into.
            text = draw() if number % 4 else None
            if text is None:
                kinds = chance.choices((all_tokens, byte_tokens), k=chance.randrange(1, 30))
                tokens = [chance.choice(kind) for kind in kinds]
            else:
                tokens = tokenizer.encode(text, add_special_tokens=False).ids
            line = {
                "text": text,
                "tokens": tokens,
                "decoded": tokenizer.decode(tokens, skip_special_tokens=True),
                "written": tokenizer.decode(tokens, skip_special_tokens=False),
            }
            output.write(json.dumps(line) + "\n")


def _drawer(tokenizer: tokenizers.Tokenizer, chance: random.Random) -> Callable[[], str]:
    """What draws one text: some pieces of different kinds, joined by what lies between words."""
    control = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    words = [word for word in sorted(tokenizer.get_vocab(with_added_tokens=False)) if len(word) > 1]

    def letters() -> str:
        first, last = chance.choice(SCRIPTS)
        return "".join(chr(chance.randint(first, last)) for _ in range(chance.randint(1, 12)))

    def any_letters() -> str:
        points = [chance.randrange(0x110000) for _ in range(chance.randint(1, 6))]
        return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)

    def part_of_control() -> str:
        whole = chance.choice(control)
        start = chance.randrange(len(whole))
        return whole[start : chance.randint(start, len(whole))]

    kinds: tuple[Callable[[], str], ...] = (
        letters,
        letters,
        any_letters,
        part_of_control,
        lambda: chance.choice(control),
        lambda: chance.choice(words).replace("▁", " "),
        lambda: "".join(chance.choice(words).replace("▁", " ") for _ in range(chance.randint(2, 8))),
        lambda: str(chance.randrange(10 ** chance.randint(1, 18))),
        lambda: f"{chance.uniform(-1e6, 1e6):,.{chance.randint(0, 5)}f} {chance.choice('€$%°')}",
        lambda: chance.choice(CODE),
        lambda: chance.choice(JOINED),
        lambda: chance.choice("ab\n\t -=.▁0") * chance.randint(1, 80),
        lambda: f"<0x{chance.randrange(256):02X}>",
    )

    def draw() -> str:
        pieces = [chance.choice(kinds)() + chance.choice(BLANKS) for _ in range(chance.randint(0, 8))]
        return "".join(pieces)

    return draw


if __name__ == "__main__":
    main()
