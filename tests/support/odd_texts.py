"""Texts for property tests: any Unicode, and often characters that are hard for tokenizers."""

from hypothesis import strategies as st

ODD = (
    "",
    " ",
    "\t\n",
    "\u00a0\u3000",
    "\u200b",
    "\u200d\ufe0f",
    "\u0301",
    "e\u0301\u0323",
    "\ufeff",
    "\x00",
    "\ufffd",
    "👩\u200d👩\u200d👧\u200d👦",
    "🏳️\u200d🌈",
    "🇩🇪",
    "שלום עולם",
    "مرحبا\u200fبالعالم",  # noqa: RUF001 - Arabic
    "\u202eright to left\u202c",
    "日本語の文",
    "ﬁﬃ",
    "İstanbul ẞ",
    "नमस्ते",
    "한국어",
    "[SEP]",
    "[CLS] [PAD]",
    "a" * 120,
    "...!?",
    "naïve café",
    "\U0010ffff\ue000",
)
"""Invisible, combining and right-to-left characters, emoji, ligatures, scripts without spaces, special tokens."""

WORDS = ("apple", "house", "river", "green", "seven", "music", "paper", "stone", "light", "water")
"""English words that are one token each for the bundled model."""

odd_texts = st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=12)), max_size=6).map("".join)
spaced_texts = st.lists(st.one_of(st.sampled_from(ODD + WORDS), st.text(max_size=6)), max_size=20).map(" ".join)
any_texts = st.one_of(odd_texts, spaced_texts)
word_lists = st.lists(st.sampled_from(WORDS), min_size=1, max_size=60)
