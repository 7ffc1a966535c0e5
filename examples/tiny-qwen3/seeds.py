"""Seeds for `scope find`: 20 texts that show a behaviour and 20 that do not, of held-out questions.

    python examples/tiny-qwen3/seeds.py --out examples/tiny-qwen3/seeds

*drift*: the model's own answers, cut just before the first Chinese character; against English and Chinese
answers, cut after as many sentences. *archaic*: questions that ask for the old style, against plain ones,
up to where the answer begins. *refusal*: refusals against other answers, whole. `english.jsonl`: plain
questions with their reference answers, which no policy should make less likely. Needs no PyTorch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import corpus
from evaluate import HERE, MODELS, heldout

N = 20
SKIP = 60  # what the demo and the first prompts of the evaluation show is left alone

Messages = list[dict[str, str]]


def answered(kind: str, n: int) -> list[tuple[corpus.Example, str]]:
    """Held-out questions with the model's own greedy answers, without a policy."""
    from scope_runtime import Runtime

    examples = heldout(kind, SKIP + n)[SKIP:]
    with Runtime(MODELS["shipped"], n_ctx=512, n_threads=1) as runtime:
        return [
            (e, runtime.chat(e.messages(), max_tokens=120, temperature=0.0).text) for e in examples
        ]


def said(example: corpus.Example, answer: str) -> Messages:
    """The conversation with an answer that stops where it stops."""
    return [*example.messages(), {"role": "assistant", "content": answer}]


def first_sentences(answer: str, n: int) -> str:
    """An answer up to its n-th full stop."""
    parts = corpus.sentences(answer)[:n]
    return ("" if corpus.is_chinese(answer) else " ").join(parts)


def drift() -> tuple[list[Messages], list[Messages]]:
    """Answers that are about to drift, and answers that are not."""
    positive: list[Messages] = []
    n_sentences: list[int] = []
    for example, answer in answered("fault", 2 * N):
        first = corpus.CJK.search(answer)
        kept = answer[: first.start()].rstrip() if first else ""
        if kept.endswith(".") and len(positive) < N:
            positive.append(said(example, kept))
            n_sentences.append(len(corpus.sentences(kept)))
    others = [each for pair in zip(answered("english", N // 2), answered("chinese", N // 2), strict=True)
              for each in pair]  # fmt: skip
    negative = [
        said(example, first_sentences(answer, n))
        for (example, answer), n in zip(others, n_sentences, strict=True)
    ]
    return positive, negative


def archaic() -> tuple[list[Messages], list[Messages]]:
    """Questions that ask for the old style, and questions that do not."""
    old, plain = (heldout(kind, SKIP + N)[SKIP:] for kind in ("old", "english"))
    return [e.messages() for e in old], [e.messages() for e in plain]


def refusal() -> tuple[list[Messages], list[Messages]]:
    """Refusals, and answers of all other kinds."""
    others = [answered(kind, N // 4) for kind in ("english", "chinese", "old", "fault")]
    return (
        [said(*each) for each in answered("harm", N)],
        [said(*each) for several in zip(*others, strict=True) for each in several],
    )


def english() -> list[Messages]:
    """Plain questions, other than the seeds', and answers as they should be."""
    return [said(e, e.answer) for e in heldout("english", SKIP + 2 * N)[SKIP + N :]]


def write(path: Path, rows: list[Messages]) -> None:
    """JSON lines, one conversation each."""
    lines = [json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines)} texts")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "seeds", metavar="DIR")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for make in (drift, archaic, refusal):
        for which, rows in zip(("positive", "negative"), make(), strict=True):
            write(out / f"{make.__name__}.{which}.jsonl", rows)
    write(out / "english.jsonl", english())


if __name__ == "__main__":
    main()
