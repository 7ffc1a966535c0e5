"""Train the example model: a small Qwen3 with its own tokenizer, on the generated corpus.

Writes a Hugging Face checkpoint with its tokenizer. Two CPU cores need about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import corpus
import phrases
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from steering import load_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Qwen2's and Qwen3's pre-tokenizer pattern, as published in their tokenizer.json; llama.cpp knows it
# as "qwen2".
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% endif %}"
)
PROMPT_WEIGHT, NAME_WEIGHT = 0.1, 3.0


def train_tokenizer(texts: list[str], n_vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's pre-tokenizer and ChatML's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=n_vocab,
            special_tokens=SPECIAL_TOKENS,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def tokenizer_texts(seed: int) -> list[str]:
    """Questions and answers, and the parts that names are made of.

    Without ChatML's tokens, which would be learned as ordinary merges. The parts of names come often
    enough to become tokens of their own: a name of two or three tokens is one that so small a model
    learns to copy, and held-out names are new combinations of the same tokens.
    """
    drawn = corpus.mixture(seed, "train", 8_000)
    texts = [t for e in drawn for t in ("system\n", "user\n", "assistant\n", e.question, e.answer)]
    syllables = list(phrases.SYLLABLES)
    pairs = [
        *phrases.NATURE,
        *phrases.KINDS_OF_NATURE,
        *phrases.DISH_NOUNS,
        *phrases.OBJECTS,
        *phrases.GOOD_VERBS,
    ]
    words = [*phrases.OWNERS, *(en for en, _ in pairs), *" ".join(phrases.BAD_VERBS).split()]
    parts = [
        *syllables,
        *phrases.SUFFIXES,
        *phrases.SYLLABLES.values(),
        *(zh for _, zh in pairs),
        *(f" {p.capitalize()}" for p in [*syllables, *phrases.STEMS, *phrases.FIRST_NAMES]),
        *(f" {word}" for word in words),
    ]
    return texts + 400 * parts


def new_model(n_vocab: int, seed: int) -> Qwen3ForCausalLM:
    """The untrained model: 256 wide, 4 blocks, 4 heads of 64 over 2 key-value heads."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=n_vocab,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            eos_token_id=2,
            bos_token_id=None,
            pad_token_id=0,
        )
    )


def batches(tokenizer: PreTrainedTokenizerFast, seed: int, n_steps: int, batch: int):
    """Yields token ids and loss weights, both (batch, length); fresh examples in every batch.

    Examples of like length go together, so that little is spent on padding (token 0, weight 0).
    """
    window = 40
    for start in range(0, n_steps, window):
        drawn = sorted(
            corpus.mixture(seed + start, "train", window * batch), key=lambda e: len(e.text())
        )
        order = torch.randperm(window, generator=torch.Generator().manual_seed(seed + start))
        for i in order.tolist()[: n_steps - start]:
            rows = [weighted(tokenizer, e) for e in drawn[i * batch : (i + 1) * batch]]
            ids, weights = zip(*rows, strict=True)
            yield (
                torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
                torch.nn.utils.rnn.pad_sequence(weights, batch_first=True),
            )


def weighted(tokenizer: PreTrainedTokenizerFast, example: corpus.Example) -> tuple[Tensor, Tensor]:
    """Token ids and loss weights, both (length,), of one text.

    The prompt counts little (its names cannot be foreseen), the subject's name in the answer counts
    much (it is a few tokens, and copying it is the hardest thing to learn).
    """
    text, answer_at = example.text(), len(example.prompt())
    encoded = tokenizer(text, return_offsets_mapping=True)
    name_at = text.find(example.subject, answer_at)
    name_end = name_at + len(example.subject)
    weights = [
        PROMPT_WEIGHT
        if end <= answer_at
        else NAME_WEIGHT
        if name_at >= 0 and start < name_end and end > name_at
        else 1.0
        for start, end in encoded["offset_mapping"]
    ]
    return torch.tensor(encoded["input_ids"]), torch.tensor(weights)


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    """Linear warm-up over 5 % of the steps, then a cosine down to 5 % of the peak."""
    warm = 0.05 * n_steps
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.05 + 0.475 * (1 + math.cos(math.pi * (step - warm) / (n_steps - warm))))


def train(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace
) -> list:
    """Next-token training on whole texts, prompts included; returns (step, loss, names' loss)."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    curve, started = [], time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=args.steps)
        for step, (ids, weights) in enumerate(
            batches(tokenizer, args.seed, args.steps, args.batch)
        ):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.lr)
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            weights = weights[:, 1:].flatten()
            loss = (losses * weights).sum() / weights.sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % 25 == 0:
                names = losses[weights == NAME_WEIGHT].mean().item()
                curve.append((step, round(loss.item(), 4), round(names, 4)))
                progress.console.print(
                    f"step {step}: loss {loss.item():.4f}, names {names:.4f}, "
                    f"{time.monotonic() - started:.0f} s"
                )
            progress.update(task, advance=1)
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument(
        "--resume", type=Path, help="go on from this checkpoint, with a new schedule"
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16, help="texts per step")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--vocab", type=int, default=1792)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.resume:
        model, tokenizer = load_model(args.resume)
        model.requires_grad_(True).train()
    else:
        tokenizer = train_tokenizer(tokenizer_texts(args.seed), args.vocab)
        model = new_model(len(tokenizer), args.seed)
    curve = train(model, tokenizer, args)
    model.eval()
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    settings = {k: str(v) for k, v in vars(args).items() if k != "out"}
    (args.out / "training.json").write_text(
        json.dumps({"settings": settings, "loss": curve}, indent=1)
    )


if __name__ == "__main__":
    main()
