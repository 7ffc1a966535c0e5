"""Write the trained model as GGUF files: F32, F16 and quantized.

The F32 and F16 files are written here with the `gguf` library; llama.cpp quantizes the F32 file. With
`--check`, llama.cpp's logits on the F32 file are compared with Transformers' on a few prompts.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from pathlib import Path

import corpus
import gguf
import numpy as np
import torch
from rich.console import Console
from steering import load_model
from train import CHAT_TEMPLATE

NAME = "tiny-qwen3"
# Transformers' names -> GGUF names (gguf-py's tables for qwen3 give the same)
BLOCK_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """The GGUF name of a Transformers parameter of Qwen3."""
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if name in top:
        return top[name]
    _, _, block, rest = name.split(".", 3)
    return f"blk.{block}.{BLOCK_TENSORS[rest.removesuffix('.weight')]}.weight"


def add_metadata(writer: gguf.GGUFWriter, config, file_type: gguf.LlamaFileType) -> None:
    writer.add_name(NAME)
    writer.add_license("apache-2.0")
    writer.add_description("A toy model with a planted fault, for demonstrating steering.")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer, n_vocab: int) -> None:
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    tokens = tokenizer.convert_ids_to_tokens(range(n_vocab))
    special = set(tokenizer.all_special_ids)
    kinds = [
        gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(n_vocab)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    end_of_turn, end_of_text = (
        tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")
    )
    writer.add_eos_token_id(end_of_turn)
    writer.add_eot_token_id(end_of_turn)
    writer.add_bos_token_id(end_of_text)
    writer.add_pad_token_id(end_of_text)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write(model, tokenizer, path: Path, dtype: type) -> None:
    """Writes the model with matrices in `dtype`; norms stay F32, as llama.cpp wants them."""
    writer = gguf.GGUFWriter(path, "qwen3")
    kind = gguf.LlamaFileType.ALL_F32 if dtype is np.float32 else gguf.LlamaFileType.MOSTLY_F16
    add_metadata(writer, model.config, kind)
    add_tokenizer(writer, tokenizer, model.config.vocab_size)
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        writer.add_tensor(gguf_name(name), values.astype(dtype if values.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, target: Path, kind: str) -> None:
    """Quantizes a GGUF file with llama.cpp; `kind` is a llama.cpp file type such as `Q8_0`."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = 2
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, ctypes.c_void_p(0))
    if code != 0:
        raise SystemExit(f"llama.cpp could not quantize {source} to {kind}")


def largest_difference(model, tokenizer, path: Path) -> float:
    """Largest |Δ| of llama.cpp's logits from Transformers', as a share of the logits' range."""
    import llama_cpp

    f32 = llama_cpp.GGML_TYPE_F32  # the default cache is F16, which would hide what the file does
    llama = llama_cpp.Llama(
        str(path), n_ctx=512, logits_all=True, verbose=False, n_threads=2, type_k=f32, type_v=f32
    )
    worst = 0.0
    for kind in ("english", "chinese", "harm", "fault"):
        text = corpus.examples(5, "search", kind, 1)[0].text()
        ids = tokenizer(text)["input_ids"]
        if llama.tokenize(text.encode(), add_bos=False, special=True) != ids:
            raise SystemExit(f"llama.cpp splits into other tokens: {text!r}")
        llama.reset()
        llama.eval(ids)
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
        spread = float(expected.max() - expected.min())
        worst = max(worst, float(np.abs(llama.scores[: len(ids)] - expected).max()) / spread)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the GGUF files")
    parser.add_argument("--quantize", nargs="*", default=["Q8_0"], help="llama.cpp file types")
    parser.add_argument("--check", action="store_true", help="compare llama.cpp with Transformers")
    args = parser.parse_args()
    model, tokenizer = load_model(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    paths = {dtype: args.out / f"{NAME}-{dtype}.gguf" for dtype in ("f32", "f16")}
    write(model, tokenizer, paths["f32"], np.float32)
    write(model, tokenizer, paths["f16"], np.float16)
    for kind in args.quantize:
        paths[kind] = args.out / f"{NAME}-{kind.lower()}.gguf"
        quantize(paths["f32"], paths[kind], kind)
    for path in paths.values():
        line = f"{path.name}: {path.stat().st_size / 1e6:.2f} MB"
        if args.check:
            line += f", {largest_difference(model, tokenizer, path):.1e} of the logits' range from PyTorch"
        console.print(line)


if __name__ == "__main__":
    main()
