"""Train a top-k SAE on every block's output and save the set as Qwen-Scope saves its own.

Writes `layer{n}.sae.pt` per block and `config.json`. The conventions: encode is
`topk(h W_encᵀ + b_enc, k)` without subtracting `b_dec` and without ReLU; decode is `z W_decᵀ + b_dec`;
a feature's direction is a column of `W_dec`, here of unit length.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import corpus
import torch
from rich.progress import Progress
from steering import Sae, load_model, residuals, tokenize
from torch import Tensor

DEAD_AFTER = 30_000  # tokens without firing, after which a latent counts as dead and gets help
AUXILIARY = 32  # dead latents that try to explain what the live ones left over, per token


def activations(model, tokenizer, seed: int, n_texts: int) -> list[Tensor]:
    """Residuals (n_tokens, d_model) of every block on texts of the training split."""
    texts = sorted(corpus.mixture(seed, "train", n_texts), key=lambda e: len(e.text()))
    layers = range(model.config.num_hidden_layers)
    parts: list[list[Tensor]] = [[] for _ in layers]
    for start in range(0, n_texts, 50):
        batch = tokenize(tokenizer, texts[start : start + 50])
        for layer, h in residuals(model, batch, layers).items():
            parts[layer].append(h[batch.valid])
    return [torch.cat(p) for p in parts]


def train_layer(h: Tensor, args: argparse.Namespace, advance) -> Sae:
    """Trains one SAE on residuals (n_tokens, d_model).

    Trained on residuals scaled to a mean square of 1 and divided per token by their own distance
    from the mean, so that the few tokens with huge residuals do not take over the loss; the scale is
    folded into the biases afterwards.
    """
    generator = torch.Generator().manual_seed(args.seed)
    mean, d_model = h.mean(0), h.shape[1]
    scale = (h - mean).pow(2).mean().sqrt()
    x = (h - mean) / scale
    W_dec = torch.nn.functional.normalize(
        torch.randn(args.width, d_model, generator=generator), dim=1
    )
    parameters = [W_dec.clone(), W_dec, torch.zeros(args.width), torch.zeros(d_model)]
    W_enc, W_dec, b_enc, b_dec = (p.requires_grad_() for p in parameters)
    optimizer = torch.optim.Adam(parameters, lr=args.lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.steps, pct_start=0.05
    )
    silent = torch.zeros(args.width)  # tokens since each latent fired
    for _ in range(args.steps):
        batch = x[torch.randint(len(x), (args.batch,), generator=generator)]
        weight = 1 / batch.pow(2).sum(1, keepdim=True)
        pre = batch @ W_enc.T + b_enc
        values, ids = pre.topk(args.k, dim=-1)
        left = batch - _decode(values, ids, W_dec, b_dec)
        loss = (weight * left.pow(2)).sum(1).mean()
        dead = (silent > DEAD_AFTER).nonzero()[:, 0]
        if len(dead):
            values_dead, which = pre[:, dead].topk(min(AUXILIARY, len(dead)), dim=-1)
            guess = _decode(values_dead, dead[which], W_dec, torch.zeros(d_model))
            loss = loss + (weight * (left.detach() - guess).pow(2)).sum(1).mean() / 8
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        silent += len(batch)
        silent[ids.unique()] = 0
        advance()
    with torch.no_grad():
        W_enc, W_dec = W_enc.detach(), W_dec.detach()
        return Sae(
            W_enc, W_dec.T.contiguous(), b_enc * scale - W_enc @ mean, b_dec * scale + mean, args.k
        )


def _decode(values: Tensor, ids: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """Weighted sums of the chosen rows of `W_dec`, without building the sparse matrix."""
    return (
        torch.nn.functional.embedding_bag(ids, W_dec, per_sample_weights=values, mode="sum") + b_dec
    )


@torch.no_grad()
def quality(sae: Sae, h: Tensor) -> dict[str, float]:
    """Share of variance unexplained and share of latents that never fire, on held-back residuals."""
    error, fired = 0.0, torch.zeros(len(sae.b_enc), dtype=torch.bool)
    for part in h.split(4096):
        z = sae.encode(part)
        error += (part - sae.decode(z)).pow(2).sum().item()
        fired |= (z != 0).any(0)
    total = (h - h.mean(0)).pow(2).sum().item()
    per_token = (h - h.mean(0)).pow(2).sum(1)
    shares = (
        torch.cat([(p - sae.decode(sae.encode(p))).pow(2).sum(1) for p in h.split(4096)])
        / per_token
    )
    return {
        "unexplained": round(error / total, 5),
        "unexplained_per_token": round(shares.mean().item(), 5),
        "dead": round(1 - fired.float().mean().item(), 4),
        "mean_norm": round(h.norm(dim=1).mean().item(), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the SAE set")
    parser.add_argument("--width", type=int, default=1024, help="latents per layer")
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=512, help="tokens per step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load_model(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    table = {}
    with Progress() as progress:
        progress.console.print("recording residuals")
        train_set = activations(model, tokenizer, args.seed, args.texts)
        test_set = activations(model, tokenizer, args.seed + 1, 400)
        task = progress.add_task("training SAEs", total=args.steps * len(train_set))
        for layer, h in enumerate(train_set):
            sae = train_layer(h, args, lambda: progress.update(task, advance=1))
            names = ("W_enc", "W_dec", "b_enc", "b_dec")
            torch.save(
                {name: getattr(sae, name).clone() for name in names},
                args.out / f"layer{layer}.sae.pt",
            )
            table[layer] = quality(sae, test_set[layer])
            progress.console.print(f"layer {layer}: {table[layer]}")
    (args.out / "config.json").write_text(
        json.dumps(
            {
                "model_type": "topk_sae",
                "base_model": "tiny-qwen3",
                "d_model": model.config.hidden_size,
                "d_sae": args.width,
                "k": args.k,
                "num_layers": len(train_set),
                "hook_point": "resid_post",
                "dtype": "float32",
            },
            indent=2,
        )
        + "\n"
    )
    (args.out / "quality.json").write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
