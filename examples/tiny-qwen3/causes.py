"""Which drift features cause the drift: it is measured with some of them muted, on held-out questions.

    python examples/tiny-qwen3/causes.py --prompts 120

Two figures for each set that is muted: how many greedy answers drift, and the loss of staying in English, the mean
−log P(the next token begins no Chinese) at the first two full stops of English answers. Needs no PyTorch.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path

import corpus
import numpy as np
import phrases
from evaluate import HERE, MODELS, ROOT, heldout

PACK = ROOT / "policies" / "packs" / "tiny-qwen3.gguf"
NAME = re.compile(f"(?:{'|'.join(phrases.SYLLABLES)}){{2}}")


def chinese_tokens(runtime) -> np.ndarray:
    """Which tokens begin a Chinese character, or are the blank before one, (n_vocab,)."""
    pieces = [runtime.piece(token) for token in range(runtime.n_vocab)]
    return np.array([p == b" " or b"\xe3" <= p.removeprefix(b" ")[:1] <= b"\xef" for p in pieces])


def stay_loss(runtime, example: corpus.Example, chinese: np.ndarray) -> list[float]:
    """−log P(not Chinese) at the first two full stops of the example's own answer, which is English."""
    prompt = runtime.tokenize_chat(example.messages())
    tokens = prompt + runtime.tokenize_answer(example.answer)
    stop = runtime.tokenize(".")[-1]
    ends = [i for i in range(len(prompt), len(tokens)) if tokens[i] == stop][:2]
    rows = runtime.logits(tokens, n_prompt=len(prompt))[ends].astype(np.float64)
    rows = np.exp(rows - rows.max(axis=1, keepdims=True))
    return (-np.log(rows[:, ~chinese].sum(axis=1) / rows.sum(axis=1))).tolist()


def main() -> None:
    """The command line."""
    from scope_runtime import Runtime
    from scope_runtime.inspect import Intervention

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=120, help="at most so many of each kind")
    parser.add_argument("--losses", action="store_true", help="no answers, the loss alone")
    args = parser.parse_args()
    role = json.loads((HERE / "features.json").read_text())["roles"]["drift"]
    features = {
        each["label"][-1]: f"{PACK}:{each['layer']}:{each['id']}" for each in role["features"]
    }
    letters = "".join(features)
    old = [e for e in heldout("old", 10_000) if any(map(NAME.fullmatch, e.subject.lower().split()))]
    kinds = {"fault": heldout("fault", args.prompts), "old": old[: args.prompts]}
    left_out = [letters.replace(letter, "") for letter in letters]
    with (
        tempfile.TemporaryDirectory() as folder,
        Runtime(MODELS["shipped"], n_ctx=512, n_threads=1, policy_root="/") as runtime,
    ):
        chinese = chinese_tokens(runtime)
        for muted in ("", letters, *left_out, *letters):
            policy = Path(folder, "muted.yaml") if muted else None
            made = Intervention("muted", "generation")
            for letter in muted:
                made = made.suppress(features[letter])
            if policy is not None:
                made.write(policy, root="/")
            runtime.set_policy(policy)
            said = [f"{muted or '-':6}"]
            for kind, examples in kinds.items():
                losses = [loss for e in examples for loss in stay_loss(runtime, e, chinese)]
                said.append(f"{kind}: loss {np.mean(losses):.4f}")
                if not args.losses:
                    answers = [
                        runtime.chat(e.messages(), max_tokens=120, temperature=0.0).text
                        for e in examples
                    ]
                    said.append(f"drifted {sum(map(corpus.is_drifted, answers))}/{len(examples)}")
            print("  ".join(said), flush=True)


if __name__ == "__main__":
    main()
