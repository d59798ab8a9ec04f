"""Texts that stress what differs between tokenizer libraries: blanks, controls, digits, marks, scripts, emoji."""

from hypothesis import strategies as st

FRAGMENTS = (
    *(
        " ",
        "  ",
        " " * 9,
        "\t",
        "\n",
        "\r\n",
        "\u00a0",
        "\u3000",
        "\u2581",
        "\u200b",
        "\u200d",
        "\ufeff",
        "\x00",
        "\x1f",
    ),
    *("a", "ab", "the", " the", "don't", "DON'T", "'S", "'\u017f", "\u212a", "McDonald's", "camelCase", "__init__"),
    *("1", "12", "1234567", "3.10", "\u0663", "\u2167", "\u00bd", "=", "==", "-----", "!?", "...", "\\", '"', "(", ")"),
    *(
        "e\u0301",
        "\u00e9",
        "\uff21\u0301",
        "\ufb01",
        "\u1100\u1161\u11a8",
        "\u304b\u3099",
        "\u0e33",
        "\u0915\u094d\u0937",
    ),
    *(
        "\u4e2d\u6587",
        "\u65e5\u672c\u8a9e",
        "\u0440\u0443\u0441",
        "\u0639\u0631\u0628\u064a",
        "\U0001d400",
        "\U00020000",
    ),
    *(
        "\U0001f600",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\U0001f1e9\U0001f1ea",
        "\u2764\ufe0f",
        "\U0001f44d\U0001f3fd",
    ),
    *(
        "<s>",
        "</s>",
        "<unk>",
        "<0x0A>",
        "<0xE4>",
        "<|endoftext|>",
        "<|im_start|>",
        "<|end|>",
        "def f(x):\n    return x\n",
    ),
)
tangled = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6), max_size=25).map("".join)
