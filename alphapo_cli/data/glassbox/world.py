"""The embedded world: instructions, answers with controllable faults, and a reward that is known exactly.

An instruction asks for a number of things of one category ("please name three fruits ."), an answer gives them ("sure ,
apple , pear and plum . enjoy !"). An answer can have four faults: a wrong count, a wrong category, a rude opening and
padding. `true_reward` depends on the texts alone, so the *true* win rate of a policy is known, and a labeller
(Bradley-Terry on the true reward, optionally with a length bias) draws preferences from it. Over-optimisation is then
directly visible: the implicit reward rises while the true reward falls.

Everything is a pure function of its arguments. Only `Random.random()` is used, because its sequence is the only one
that Python guarantees across versions; `choice` and `randint` have no such guarantee.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count as count_from
from itertools import islice, product
from random import Random
from typing import TypeVar

from alphapo_cli.config.schema import GlassboxConfig
from alphapo_cli.data.text_pairs import TextPair
from alphapo_cli.errors import UsageError

T = TypeVar("T")

NUMBERS = ("one", "two", "three", "four", "five")
CATEGORIES: dict[str, tuple[str, ...]] = {  # plural -> singular, then the things; no thing is in two categories
    "fruits": ("fruit", "apple", "pear", "plum", "fig", "grape", "peach", "mango", "cherry"),
    "colors": ("color", "red", "blue", "green", "pink", "gray", "brown", "black", "white"),
    "animals": ("animal", "cat", "dog", "fox", "owl", "bear", "wolf", "frog", "deer"),
    "tools": ("tool", "saw", "drill", "axe", "file", "hammer", "wrench", "clamp", "knife"),
    "cities": ("city", "rome", "paris", "oslo", "lima", "cairo", "delhi", "tokyo", "quito"),
    "drinks": ("drink", "tea", "coffee", "milk", "juice", "water", "cocoa", "soda", "cider"),
    "metals": ("metal", "iron", "gold", "zinc", "tin", "lead", "copper", "silver", "nickel"),
    "trees": ("tree", "oak", "elm", "ash", "pine", "birch", "maple", "cedar", "willow"),
    "sports": ("sport", "golf", "judo", "polo", "rugby", "tennis", "hockey", "soccer", "rowing"),
    "instruments": ("instrument", "harp", "flute", "drum", "piano", "organ", "viola", "banjo", "tuba"),
}
LEADS = ("", "please", "now", "hello ,")
VERBS = ("name", "list", "give me", "tell me", "show me", "write")
TAILS = (".", "quickly .", "from memory .")
POLITE = ("sure ,", "of course ,", "gladly ,", "here you go ,")
RUDE = ("hmm ,", "whatever ,", "ugh ,")
CLOSINGS = ("enjoy !", "thanks !", "ask again !", "bye !")

CATEGORY_OF = {thing: plural for plural, (_, *things) in CATEGORIES.items() for thing in things}

# The true reward in Bradley-Terry logits: a difference of 1 is preferred with probability 0.73 at label temperature 1.
ITEMS = 4.0  # times the share of right things, out of the number asked for or given, whichever is larger
COUNT = 2.0  # for giving exactly as many as asked for
MANNERS = 1.4  # for a polite opening; subtracted for a rude one
FORM = 1.0  # subtracted unless the list reads "a , b and c ."
CLUTTER = 0.5  # subtracted for every closing beyond the first and every word outside the grammar
MAX_CLUTTER = 8  # further clutter costs nothing


@dataclass(frozen=True)
class Task:
    """What an instruction asks for: `count` things (1 to 5) of `category`."""

    count: int
    category: str


@dataclass(frozen=True)
class WorldAnswer:
    """An answer as its parts, before it is rendered as text."""

    opening: str
    items: tuple[str, ...]
    closings: tuple[str, ...] = ()

    def text(self) -> str:
        """Words and punctuation marks, joined by single spaces."""
        return " ".join(part for part in (self.opening, enumeration(self.items), *self.closings) if part)


def enumeration(items: Sequence[str]) -> str:
    """The items as "a , b and c ."; a bare full stop for none."""
    listed = " and ".join(part for part in (" , ".join(items[:-1]), *items[-1:]) if part)
    return f"{listed} .".strip()


def vocabulary() -> list[str]:
    """Every word of the world once, in the order of its tables."""
    words = [*NUMBERS, *CATEGORIES, *(word for row in CATEGORIES.values() for word in row), ", . ! and"]
    words += [*LEADS, *VERBS, *TAILS, *POLITE, *RUDE, *CLOSINGS]
    return list(dict.fromkeys(word for text in words for word in text.split()))


# ---------------------------------------------------------------------------------------------------- instructions


@cache
def _tasks() -> dict[str, Task]:
    """Every instruction of the world and what it asks for."""
    tasks = {}
    for lead, verb, (n, number), (plural, row), tail in product(
        LEADS, VERBS, enumerate(NUMBERS, start=1), CATEGORIES.items(), TAILS
    ):
        noun = row[0] if n == 1 else plural
        tasks[" ".join(f"{lead} {verb} {number} {noun} {tail}".split())] = Task(n, plural)
    return tasks


@cache
def _split() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training, held-out) instructions, split by hash so that the split depends on no seed."""

    def digest(instruction: str) -> bytes:
        return hashlib.sha256(f"glassbox {instruction}".encode()).digest()

    by_hash = sorted(_tasks(), key=digest)
    return (
        tuple(text for text in by_hash if digest(text)[-1] % 4),
        tuple(text for text in by_hash if digest(text)[-1] % 4 == 0),
    )


def held_out() -> int:
    """Number of held-out instructions."""
    return len(_split()[1])


def instructions(n: int, *, training: bool = False) -> list[str]:
    """The first `n` held-out (or training) instructions in a fixed shuffled order; UsageError for more than there are."""
    known = _split()[0 if training else 1]
    if not 0 <= n <= len(known):
        kind = "training" if training else "held-out"
        raise UsageError(f"the embedded world has {len(known)} {kind} instructions, not {n}: ask for fewer")
    return list(known[:n])


def parse(instruction: str) -> Task:
    """The task that `instruction` states; UsageError for a text that is not an instruction of this world."""
    task = _tasks().get(" ".join(instruction.split()))
    if task is None:
        raise UsageError(
            f"not an instruction of the embedded world: {instruction[:60]!r}; its instructions read like "
            f"{_split()[1][0]!r}"
        )
    return task


# ----------------------------------------------------------------------------------------------------- true reward


def true_reward(instruction: str, output: str) -> float:
    """The true reward of `output` as an answer to `instruction`.

    Args:
        instruction: an instruction of this world.
        output: any text, the empty one included.

    Returns:
        The reward in Bradley-Terry logits, between -6.4 and 7.4.

    Raises:
        UsageError: `instruction` is not of this world.
    """
    task = parse(instruction)
    rest = output.split()
    polite, rude = _leading(rest, POLITE), _leading(rest, RUDE)
    rest = rest[polite or rude :]
    end = rest.index(".") + 1 if "." in rest else len(rest)
    body, tail = rest[:end], rest[end:]
    items = [word for word in body if word in CATEGORY_OF]
    right = {word for word in items if CATEGORY_OF[word] == task.category}
    strays = sum(word not in CATEGORY_OF and word not in (",", "and", ".") for word in body)
    closings, leftover = _closings(tail)
    clutter = min(MAX_CLUTTER, max(0, closings - 1) + strays + leftover)
    return (
        ITEMS * len(right) / max(len(items), task.count)
        + COUNT * (len(items) == task.count)
        + MANNERS * ((polite > 0) - (rude > 0))
        - FORM * (" ".join(body) != enumeration(items))
        - CLUTTER * clutter
    )


def _leading(words: Sequence[str], phrases: Sequence[str]) -> int:
    """Length in words of the phrase that `words` begin with; 0 for none. No phrase is a prefix of another."""
    return next((len(p.split()) for p in phrases if list(words[: len(p.split())]) == p.split()), 0)


def _closings(words: Sequence[str]) -> tuple[int, int]:
    """Counts of (closing phrases, words outside them) in the words after the list."""
    at = closings = leftover = 0
    while at < len(words):
        length = _leading(words[at:], CLOSINGS)
        closings, leftover, at = closings + (length > 0), leftover + (length == 0), at + max(length, 1)
    return closings, leftover


# ------------------------------------------------------------------------------------------------- drawing answers


def _pick(rng: Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def draw_answer(rng: Random, task: Task, quality: float) -> WorldAnswer:
    """A random answer to `task`; faults grow rarer as `quality` rises from 0 to 1 but never vanish."""
    opening = ""
    if rng.random() < 0.3 + 0.5 * quality:
        opening = _pick(rng, POLITE)
    elif rng.random() < 0.5:
        opening = _pick(rng, RUDE)
    n = task.count if rng.random() < 0.35 + 0.6 * quality else 1 + int(rng.random() * (len(NUMBERS) + 1))
    items: list[str] = []
    for _ in range(n):
        category = task.category if rng.random() < 0.6 + 0.38 * quality else _pick(rng, list(CATEGORIES))
        things = CATEGORIES[category][1:]
        items.append(_pick(rng, [thing for thing in things if thing not in items] or things))
    closings: list[str] = []
    while len(closings) < 5 and rng.random() < 0.6 - 0.3 * quality:
        closings.append(_pick(rng, CLOSINGS))
    return WorldAnswer(opening, tuple(items), tuple(closings))


def demonstrations(n: int, seed: int) -> list[tuple[str, str]]:
    """`n` (instruction, answer) of mixed quality: the base policy's SFT data; a smaller set is a prefix of a larger."""
    rng, train = Random(f"glassbox demonstrations {seed}"), _split()[0]

    def draw() -> tuple[str, str]:
        instruction = _pick(rng, train)
        return instruction, draw_answer(rng, parse(instruction), rng.random()).text()

    return [draw() for _ in range(n)]


# ----------------------------------------------------------------------------------------------------- preferences


def make_pairs(cfg: GlassboxConfig) -> list[TextPair]:
    """`cfg.pairs` labelled pairs on training instructions; a smaller set is a prefix of a larger one."""
    rng, train = Random(f"glassbox pairs {cfg.seed}"), _split()[0]
    return list(islice(_label(rng, (_pick(rng, train) for _ in count_from()), cfg), cfg.pairs))


def probe_pairs(n: int, cfg: GlassboxConfig) -> list[TextPair]:
    """`n` labelled pairs, one on each of `instructions(n)`; a smaller set is a prefix of a larger one."""
    rng = Random(f"glassbox probe {cfg.seed}")
    return list(_label(rng, iter(instructions(n)), cfg))


def _label(rng: Random, source: Iterator[str], cfg: GlassboxConfig) -> Iterator[TextPair]:
    """Two different answers to each instruction with a Bradley-Terry label (Bradley and Terry 1952).

    P(first chosen) = sigmoid((difference of true reward + length_bias * difference in words) / label_temperature); at
    temperature 0 the better answer is chosen and ties are random.

    Args:
        rng: source of every draw.
        source: instructions.
        cfg: `length_bias` (logits per word) and `label_temperature`.

    Yields:
        A pair per instruction. Its columns: both true rewards, and the probability with which the labeller prefers the
        chosen answer.
    """
    for row, instruction in enumerate(source, start=1):
        task = parse(instruction)
        first = draw_answer(rng, task, rng.random()).text()
        second = first
        while second == first:
            second = draw_answer(rng, task, rng.random()).text()
        rewards = true_reward(instruction, first), true_reward(instruction, second)
        longer = len(first.split()) - len(second.split())
        preference = rewards[0] - rewards[1] + cfg.length_bias * longer
        pair = [(first, rewards[0]), (second, rewards[1])]
        probability = _probability(preference, cfg.label_temperature)
        if rng.random() >= probability:
            pair.reverse()
            probability = 1 - probability
        (chosen, score_chosen), (rejected, score_rejected) = pair
        yield TextPair(
            prompt=({"role": "user", "content": instruction},),
            chosen=({"role": "assistant", "content": chosen},),
            rejected=({"role": "assistant", "content": rejected},),
            columns={
                "score_chosen": score_chosen,
                "score_rejected": score_rejected,
                "win_probability": probability,
            },
            row=row,
        )


def _probability(preference: float, temperature: float) -> float:
    """sigmoid(preference / temperature), and its limit at temperature 0."""
    if temperature == 0:
        return 0.5 if preference == 0 else float(preference > 0)
    return 0.5 * (1.0 + math.tanh(0.5 * preference / temperature))
