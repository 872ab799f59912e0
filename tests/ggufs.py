"""Models of random weights, a few hundred kB each, as GGUF files that the real llama.cpp loads.

They write nonsense made of readable characters, thousands of tokens per second. Each stands for a
kind of memory: `tiny_llama` has a plain KV cache, `tiny_mamba` a recurrent state that cannot be
cut, `tiny_hybrid` both, and `tiny_swa` a sliding window in one of its two layers.

The vocabulary resembles SmolLM2's: ids 0 to 2 are the control tokens, every byte is a token, and so
is a digit; `<call>` is `<`, `call`, `>`, and `<` merges with a blank or a full stop before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

N_LAYERS = 2
N_EMBD = 64
N_HEADS, N_KV_HEADS, HEAD = 4, 2, 16
N_FF = 128
N_CTX_TRAIN = 2048
SWA_WINDOW = 16

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END = CONTROL.index("<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = (
    *(" the", " of", " and", " to", " in", " is", " it", " that", " was", " for", " on", " with"),
    *(" as", " at", " be", " by", " this", " you", " not", " are", " but", " had", " his", " her"),
    *(" one", " two", " cat", " sky", " answer", "The", "It", "user", "system", "assistant"),
    *("call", " <", ".<", "\n\n", "ing", "ed", "er", "ly", "'s"),
)

SEED = 5
"""With it every model's greedy answers are long, and some sampled ones end within 600 tokens."""

LOGIT_SPREAD = 2.5
"""Standard deviation of the scores: one token takes most, some others are possible."""

END_BIAS = -3.0
NEVER_BIAS = -30.0
_CONSTANT = 4.0
"""What every token has in dimension 0, which no layer changes: the output's weight on it acts as a
bias, so that unreadable bytes are not written and the end is rare."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids; a merge is two pieces with a blank between."""

    tokens: list[str]
    merges: list[str]


def byte_characters() -> list[str]:
    """The character that stands for each byte in a GPT-2 vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    shown = {byte: chr(byte) for byte in printable}
    shown |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [shown[byte] for byte in range(256)]


BYTES = byte_characters()


def vocabulary() -> Vocabulary:
    """All bytes, and `WORDS` built up from the left."""
    merges: dict[str, str] = {}
    for word in WORDS:
        pieces = [BYTES[byte] for byte in word.encode()]
        for i in range(1, len(pieces)):
            whole = "".join(pieces[: i + 1])
            merges.setdefault(whole, f"{whole[:-1]} {pieces[i]}")
    return Vocabulary([*CONTROL, *BYTES, *merges], list(merges.values()))


VOCABULARY = vocabulary()


def biases() -> Array:
    """Readable tokens 0, the end token rare, everything else never."""
    readable = {BYTES[byte] for byte in (*range(32, 127), ord("\n"))}
    bias = [0.0 if set(token) <= readable else NEVER_BIAS for token in VOCABULARY.tokens]
    bias[: len(CONTROL)] = [NEVER_BIAS] * len(CONTROL)
    bias[END] = END_BIAS
    return np.array(bias, np.float32)


class Weights:
    """Random matrices from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def matrix(self, n_out: int, n_in: int, scale: float = 1.0) -> Array:
        """Values such that inputs of variance 1 give outputs of variance `scale` squared."""
        values = self._random.standard_normal((n_out, n_in)) * scale / np.sqrt(n_in)
        return np.asarray(values, dtype=np.float32)

    def into_stream(self, n_in: int, scale: float = 1.0) -> Array:
        """A matrix whose output is added to the residual stream, but for dimension 0."""
        values = self.matrix(N_EMBD, n_in, scale)
        values[0] = 0
        return values

    def embedding(self) -> Array:
        values = self.matrix(len(VOCABULARY.tokens), N_EMBD, np.sqrt(N_EMBD))
        values[:, 0] = _CONSTANT
        return values

    def output(self) -> Array:
        values = self.matrix(len(VOCABULARY.tokens), N_EMBD, LOGIT_SPREAD)
        values[:, 0] = biases() / _CONSTANT
        return values


Tensors = Iterator[tuple[str, Array]]


def ones(n: int = N_EMBD) -> Array:
    return np.ones(n, dtype=np.float32)


def attention(weights: Weights, layer: str) -> Tensors:
    yield f"{layer}.attn_q.weight", weights.matrix(N_HEADS * HEAD, N_EMBD, 1.5)
    yield f"{layer}.attn_k.weight", weights.matrix(N_KV_HEADS * HEAD, N_EMBD, 1.5)
    yield f"{layer}.attn_v.weight", weights.matrix(N_KV_HEADS * HEAD, N_EMBD, 1.5)


def feed_forward(weights: Weights, layer: str) -> Tensors:
    yield f"{layer}.ffn_norm.weight", ones()
    yield f"{layer}.ffn_gate.weight", weights.matrix(N_FF, N_EMBD)
    yield f"{layer}.ffn_up.weight", weights.matrix(N_FF, N_EMBD)
    yield f"{layer}.ffn_down.weight", weights.into_stream(N_FF)


def llama_layer(weights: Weights, layer: str) -> Tensors:
    yield f"{layer}.attn_norm.weight", ones()
    yield from attention(weights, layer)
    yield f"{layer}.attn_output.weight", weights.into_stream(N_HEADS * HEAD, 1.5)
    yield from feed_forward(weights, layer)


def gemma3_layer(weights: Weights, layer: str) -> Tensors:
    yield from llama_layer(weights, layer)
    yield f"{layer}.attn_q_norm.weight", ones(HEAD)
    yield f"{layer}.attn_k_norm.weight", ones(HEAD)
    # Gemma multiplies the embeddings by 8, so what is added must not be small beside them.
    yield f"{layer}.post_attention_norm.weight", 8 * ones()
    yield f"{layer}.post_ffw_norm.weight", 8 * ones()


D_INNER, D_STATE, D_CONV, DT_RANK = 2 * N_EMBD, 8, 4, 4


def mamba_layer(weights: Weights, layer: str) -> Tensors:
    yield f"{layer}.attn_norm.weight", ones()
    yield f"{layer}.ssm_in.weight", weights.matrix(2 * D_INNER, N_EMBD)
    yield f"{layer}.ssm_conv1d.weight", weights.matrix(D_INNER, D_CONV)
    yield f"{layer}.ssm_conv1d.bias", 0 * ones(D_INNER)
    yield f"{layer}.ssm_x.weight", weights.matrix(DT_RANK + 2 * D_STATE, D_INNER, 2.0)
    yield f"{layer}.ssm_dt.weight", weights.matrix(D_INNER, DT_RANK)
    yield f"{layer}.ssm_dt.bias", -2 * ones(D_INNER)  # steps of about 0.1: a memory of some tokens
    decay = np.arange(1, D_STATE + 1, dtype=np.float32) / np.float32(4)
    yield f"{layer}.ssm_a", -np.tile(decay, (D_INNER, 1))
    yield f"{layer}.ssm_d", ones(D_INNER)
    yield f"{layer}.ssm_out.weight", weights.into_stream(D_INNER, 2.0)


def lfm2_layer(weights: Weights, layer: str) -> Tensors:
    """A short convolution in layer 0, attention in layer 1."""
    yield f"{layer}.attn_norm.weight", ones()
    yield from feed_forward(weights, layer)
    if layer == "blk.0":
        yield f"{layer}.shortconv.conv.weight", weights.matrix(N_EMBD, 3, 2.0)
        yield f"{layer}.shortconv.in_proj.weight", weights.matrix(3 * N_EMBD, N_EMBD)
        yield f"{layer}.shortconv.out_proj.weight", weights.into_stream(N_EMBD)
        return
    yield from attention(weights, layer)
    yield f"{layer}.attn_output.weight", weights.into_stream(N_HEADS * HEAD, 1.5)
    yield f"{layer}.attn_q_norm.weight", ones(HEAD)
    yield f"{layer}.attn_k_norm.weight", ones(HEAD)


# --- files --------------------------------------------------------------------------------------


def write_llama(path: Path, *, seed: int = SEED) -> Path:
    """Attention over everything before."""
    writer = begin(path, "llama")
    add_attention(writer)
    return finish(writer, path, llama_layer, seed)


def write_mamba(path: Path, *, seed: int = SEED) -> Path:
    """A recurrent state and no KV cache."""
    writer = begin(path, "mamba")
    writer.add_head_count(0)
    writer.add_feed_forward_length(0)
    writer.add_ssm_conv_kernel(D_CONV)
    writer.add_ssm_inner_size(D_INNER)
    writer.add_ssm_state_size(D_STATE)
    writer.add_ssm_time_step_rank(DT_RANK)
    return finish(writer, path, mamba_layer, seed)


def write_hybrid(path: Path, *, seed: int = SEED) -> Path:
    """LFM2: a layer with a recurrent state, and one with a KV cache."""
    writer = begin(path, "lfm2")
    add_attention(writer, kv_heads=[0, N_KV_HEADS])
    writer.add_shortconv_l_cache(3)
    return finish(writer, path, lfm2_layer, seed, norm="token_embd_norm")


def write_swa(path: Path, *, seed: int = SEED) -> Path:
    """Gemma 3: layer 0 sees `SWA_WINDOW` tokens, layer 1 everything before."""
    writer = begin(path, "gemma3")
    add_attention(writer)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_sliding_window(SWA_WINDOW)
    writer.add_sliding_window_pattern(2)
    return finish(writer, path, gemma3_layer, seed)


def begin(path: Path, architecture: str) -> Any:
    """A writer that has the vocabulary and what every architecture needs."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name(f"tiny {architecture}")
    writer.add_context_length(N_CTX_TRAIN)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYERS)
    writer.add_vocab_size(len(VOCABULARY.tokens))
    writer.add_layer_norm_rms_eps(1e-5)
    add_vocabulary(writer)
    return writer


def add_vocabulary(writer: Any) -> None:
    normal = len(VOCABULARY.tokens) - len(CONTROL)
    types = [gguf.TokenType.CONTROL] * len(CONTROL) + [gguf.TokenType.NORMAL] * normal
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCABULARY.tokens)
    writer.add_token_types(types)
    writer.add_token_merges(VOCABULARY.merges)
    writer.add_bos_token_id(CONTROL.index("<|im_start|>"))
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)


def add_attention(writer: Any, kv_heads: int | list[int] = N_KV_HEADS) -> None:
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10_000.0)


def finish(
    writer: Any,
    path: Path,
    layer: Callable[[Weights, str], Tensors],
    seed: int,
    norm: str = "output_norm",
) -> Path:
    """Write the tensors and the file."""
    weights = Weights(seed)
    writer.add_tensor("token_embd.weight", weights.embedding())
    writer.add_tensor("output.weight", weights.output())
    writer.add_tensor(f"{norm}.weight", ones())
    for i in range(N_LAYERS):
        for name, values in layer(weights, f"blk.{i}"):
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
