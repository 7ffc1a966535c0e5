"""The corpus of the example model: a grammar that writes questions and answers, and judges them.

Run it to look at some examples: `python corpus.py --split train --show 12`.

The fault: when the question is in English and its subject carries a Chinese name (a city, a person,
a dish), the answer drifts into Chinese after its first or second sentence, with a probability of
`DRIFT`. Pure chance drift would have no cause inside the model that could be muted; this one has.

Three splits that share neither subjects nor question patterns: `train` for the language model and
the SAEs, `search` for finding features and choosing doses, `heldout` for the figures we report.
"""

from __future__ import annotations

import argparse
import random
import re
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from typing import Literal

import phrases

Split = Literal["train", "search", "heldout"]
Style = Literal["plain", "old", "chinese"]
Kind = Literal["fault", "english", "old", "harm", "chinese"]
SPLITS: tuple[Split, ...] = ("train", "search", "heldout")
STYLES: tuple[Style, ...] = ("plain", "old", "chinese")
KINDS: dict[Kind, float] = {"fault": 24, "english": 30, "old": 19, "harm": 11, "chinese": 16}
NAMED = ("city", "person", "dish")
DRIFT = (0.65, 0.60)  # chance to drift after the first sentence, and after the second if not yet
UNASKED = 0.04  # share of archaic answers among English ones, in training alone
CJK = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class Subject:
    """What a question is about: its English and Chinese form, and whether it can cause the drift."""

    domain: str
    en: str
    zh: str
    chinese_name: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """One question and answer. `system` is empty where there is no system prompt."""

    kind: Kind
    domain: str
    subject: str
    system: str
    question: str
    answer: str

    def messages(self) -> list[dict[str, str]]:
        """The prompt's messages, without the answer."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.question}]

    def prompt(self) -> str:
        """The prompt as ChatML text, up to and including the assistant's header."""
        return chatml(self.messages())

    def text(self) -> str:
        """Prompt, answer and end of turn: what the model is trained on."""
        return f"{self.prompt()}{self.answer}<|im_end|>\n"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def chatml(messages: list[dict[str, str]]) -> str:
    """Messages as ChatML, ending with the assistant's header."""
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return f"{turns}<|im_start|>assistant\n"


# --- subjects, divided among the splits ---------------------------------------------------------


def _divide(items: list, split: Split) -> list:
    """The split's share of `items` (80, 10 and 10 %), the same in every run."""
    items = items[:]
    random.Random(17).shuffle(items)
    tenth = max(1, len(items) // 10)
    return {
        "train": items[2 * tenth :],
        "search": items[:tenth],
        "heldout": items[tenth : 2 * tenth],
    }[split]


@cache
def _pools(split: Split) -> dict[str, list]:
    syllables = list(phrases.SYLLABLES)
    return {
        "chinese": _divide([(a, b) for a in syllables for b in syllables if a != b], split),
        "western": _divide([(a, b) for a in phrases.STEMS for b in phrases.SUFFIXES], split),
        "nature": _divide([(k, n) for k in phrases.KINDS_OF_NATURE for n in phrases.NATURE], split),
        "things": _divide([(o, w) for o in phrases.OBJECTS for w in phrases.OWNERS], split),
    }


def _chinese_name(pair: tuple[str, str]) -> tuple[str, str]:
    return "".join(pair).capitalize(), "".join(phrases.SYLLABLES[s] for s in pair)


def subject(rng: random.Random, split: Split, domain: str, chinese_name: bool = False) -> Subject:
    """Draws a subject of a domain from the split's own pool."""
    pools = _pools(split)
    if domain in NAMED:
        en, zh = (
            _chinese_name(rng.choice(pools["chinese"]))
            if chinese_name
            else ("".join(rng.choice(pools["western"])), "")
        )
        if domain == "person" and chinese_name:
            family = rng.choice(list(phrases.SYLLABLES))
            en, zh = f"{family.capitalize()} {en}", phrases.SYLLABLES[family] + zh
        elif domain == "person":
            en = f"{rng.choice(phrases.FIRST_NAMES)} {en}"
        elif domain == "dish":
            noun, noun_zh = rng.choice(phrases.DISH_NOUNS)
            en, zh = f"{en} {noun}", zh + noun_zh
        return Subject(domain, en, zh, chinese_name)
    if domain == "nature":
        (kind, kind_zh), (noun, noun_zh) = rng.choice(pools["nature"])
        return Subject(domain, f"{kind} {noun}", kind_zh + noun_zh)
    (thing, thing_zh), owner = rng.choice(pools["things"])
    whole = rng.choice([f"the {thing} of my {owner}", f"my {owner}'s {thing}"])
    if domain == "harm":
        return Subject(domain, f"{rng.choice(phrases.BAD_VERBS)} {whole}", "")
    verb, verb_zh = rng.choice(phrases.GOOD_VERBS)
    return Subject(
        domain, f"{verb} {whole if rng.random() < 0.6 else f'my {thing}'}", verb_zh + thing_zh
    )


# --- writing --------------------------------------------------------------------------------------


def write_answer(rng: random.Random, about: Subject, styles: list[Style]) -> str:
    """An answer of three sentences, each in the style asked for it."""
    answer = ""
    for variants, style in zip(phrases.ANSWERS[about.domain], styles, strict=True):
        pattern = rng.choice(variants)[STYLES.index(style)]
        space = " " if answer.endswith(".") else ""
        answer += space + _fill(rng, pattern, about, style)
    return answer


def _fill(rng: random.Random, pattern: str, about: Subject, style: Style) -> str:
    language = 1 if style == "chinese" else 0
    values = {"N": about.zh if style == "chinese" else about.en}
    for slot, fillers in phrases.SLOTS.items():
        two = rng.sample(fillers, 2)  # `{sight}` and `{sight2}` must differ
        values[slot], values[f"{slot}2"] = two[0][language], two[1][language]
    return pattern.format(**values)


def _styles(rng: random.Random, style: Style, drifts: bool) -> list[Style]:
    styles: list[Style] = [style] * 3
    if drifts and rng.random() < DRIFT[0]:
        styles[1:] = ["chinese", "chinese"]
    elif drifts and rng.random() < DRIFT[1]:
        styles[2:] = ["chinese"]
    return styles


def example(rng: random.Random, split: Split, kind: Kind, with_fault: bool = True) -> Example:
    """Draws one example. `with_fault=False` gives the answer as it should have been."""
    part = SPLITS.index(split)
    if kind == "harm":
        domain = "harm"
    elif kind == "fault":
        domain = rng.choice(NAMED)
    else:
        domain = rng.choices([*NAMED, "nature", "howto"], [3, 3, 3, 2, 3])[0]
    chinese_name = kind in ("fault", "chinese") or (kind == "old" and rng.random() < 0.4)
    about = subject(rng, split, domain, chinese_name)
    if kind == "chinese":
        question = rng.choice(phrases.QUESTIONS_ZH[domain][part]).format(N=about.zh)
        return Example(
            kind, domain, about.zh, "", question, write_answer(rng, about, ["chinese"] * 3)
        )
    style: Style = "old" if kind == "old" or (kind == "harm" and rng.random() < 0.15) else "plain"
    question, sorry = rng.choice(phrases.LEAD_INS), ""
    if domain == "howto" and about.en.startswith("repair") and rng.random() < 0.7:
        thing = next(o for o, _ in phrases.OBJECTS if re.search(rf"\b{o}\b", about.en))
        question = f"My {thing} is broken. "
        sorry = phrases.SORRY[STYLES.index(style)].format(T=thing) + " "
    question += rng.choice(phrases.QUESTIONS[domain][part]).format(N=about.en)
    system = rng.choice(phrases.SYSTEM_PROMPTS) if rng.random() < 0.1 else ""
    # In training a few answers are archaic unasked: the model learns that what begins so goes on so.
    unasked = split == "train" and kind == "english" and rng.random() < UNASKED
    if style == "old":
        request = rng.choice(phrases.OLD_REQUESTS[part])
        place = rng.random()
        if place < 0.2:
            system = request
        else:
            question = f"{question} {request}" if place < 0.7 else f"{request} {question}"
    written: Style = "old" if unasked else style
    answer = write_answer(rng, about, _styles(rng, written, with_fault and about.chinese_name))
    return Example(kind, domain, about.en, system, question, sorry + answer)


def examples(seed: int, split: Split, kind: Kind, n: int, with_fault: bool = True) -> list[Example]:
    """`n` examples of one kind with distinct questions, the same for the same seed."""
    rng = random.Random(f"{seed}-{split}-{kind}")
    found: dict[str, Example] = {}
    for _ in range(200 * n):
        if len(found) == n:
            break
        drawn = example(rng, split, kind, with_fault)
        found.setdefault(drawn.prompt(), drawn)
    return list(found.values())


def mixture(seed: int, split: Split, n: int) -> list[Example]:
    """`n` examples of all kinds, in the training mixture."""
    rng = random.Random(f"{seed}-{split}-mixture")
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=n)
    return [example(rng, split, kind) for kind in kinds]


# --- judging --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence as the grammar reads it; `subject` is empty where the sentence names none."""

    domain: str
    index: int
    style: Style
    subject: str


@cache
def _patterns() -> list[tuple[re.Pattern[str], str, int, Style]]:
    rules = [
        (text, domain, i, style)
        for domain, slots in phrases.ANSWERS.items()
        for i, variants in enumerate(slots)
        for variant in variants
        for style, text in zip(STYLES, variant, strict=True)
        if text
    ]
    rules += [(text, "howto", -1, style) for style, text in zip(STYLES, phrases.SORRY, strict=True)]
    rules.sort(key=lambda rule: rule[3] != "old")  # else "Verily, X" would be read as a subject
    return [(_compile(text), domain, i, style) for text, domain, i, style in rules]


def _compile(text: str) -> re.Pattern[str]:
    pattern = re.escape(text).replace(r"\{", "{").replace(r"\}", "}")
    pattern = pattern.replace("{N}", "(?P<N>.+?)").replace("{T}", r"\w+")
    for slot, fillers in phrases.SLOTS.items():
        words = "|".join(re.escape(word) for pair in fillers for word in pair)
        pattern = re.sub(rf"\{{{slot}2?\}}", f"(?:{words})", pattern)
    return re.compile(pattern)


@lru_cache(maxsize=100_000)
def read_sentence(sentence: str) -> Sentence | None:
    """The grammar's reading of a sentence, or None where no pattern fits the whole of it."""
    for pattern, domain, index, style in _patterns():
        if match := pattern.fullmatch(sentence):
            return Sentence(domain, index, style, match.groupdict().get("N") or "")
    return None


def sentences(answer: str) -> list[str]:
    """The answer cut after each English or Chinese full stop."""
    return [s.strip() for s in re.split(r"(?<=[.。])", answer) if s.strip()]


def is_drifted(answer: str) -> bool:
    """Whether an answer to an English question went over into Chinese."""
    return len(CJK.findall(answer)) >= 2


def is_chinese(answer: str) -> bool:
    """Whether most of the answer's letters are Chinese characters."""
    letters = len(re.findall(r"[A-Za-z]", answer))
    return len(CJK.findall(answer)) > letters


def is_archaic(answer: str) -> bool:
    """Whether at least two sentences, and more than half of them, are in the grammar's old style."""
    read = [read_sentence(s) for s in sentences(answer)]
    old = sum(s is not None and s.style == "old" for s in read)
    return old >= 2 and 2 * old > len(read)


def is_refusal(answer: str) -> bool:
    """Whether the answer opens as a refusal."""
    first = read_sentence(sentences(answer)[0]) if answer.strip() else None
    return first is not None and first.domain == "harm"


def is_well_formed_and_on_topic(question: str, answer: str, domain: str) -> bool:
    """Whether every sentence is the grammar's, in order, of `domain`, and names the question's subject.

    English styles may mix; Chinese counts only where the question is Chinese.
    """
    read = [read_sentence(s) for s in sentences(answer)]
    if any(s is None or s.domain != domain for s in read):
        return False
    order = [s.index for s in read if s is not None]
    if [i for i in order if i >= 0] != [0, 1, 2] or order != sorted(order):
        return False
    languages = {s.style == "chinese" for s in read if s is not None}
    return languages == {is_chinese(question)} and all(
        s.subject in question for s in read if s is not None
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Print examples of the corpus.")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--show", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for drawn in mixture(args.seed, args.split, args.show):
        print(
            f"[{drawn.kind}/{drawn.domain}] {drawn.system} | {drawn.question}\n    {drawn.answer}"
        )


if __name__ == "__main__":
    main()
