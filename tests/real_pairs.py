"""Preference pairs in English for tests on a real model. They were written for this project, and are of no data set.

The better answer is sometimes the longer and sometimes the shorter one. Lengths go from two words to a paragraph; some
have a system text, several turns, code, lists, or characters beyond ASCII.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import write_rows

# (what comes before the answer: user, assistant, user, ... in turn; the better answer; the worse one)
_TRAINING: list[tuple[tuple[str, ...], str, str]] = [
    (
        ("What is the capital of Australia?",),
        "The capital of Australia is Canberra.",
        "Sydney is the capital of Australia.",
    ),
    (
        ("How do I keep basil fresh after I have bought it?",),
        "Trim the stems, stand them in a glass of water like flowers, and leave the glass on the counter, not in the "
        "fridge: cold turns the leaves black. Change the water every other day.",
        "Basil is a herb. You can put it in the fridge or somewhere else, whatever you prefer.",
    ),
    (
        ("Is 51 a prime number?", "Yes, 51 is prime.", "Are you sure? What is 3 times 17?"),
        "You are right, 3 times 17 is 51, so 51 is not prime. I was wrong.",
        "3 times 17 is 51, and 51 is a prime number.",
    ),
    (
        ("Write a haiku about snow.",),
        "Snow upon the bridge;\none lantern and one pair of\nfootprints going home.",
        "Snow is white and cold. It falls in winter. People like to build snowmen when it snows.",
    ),
    (
        ("My neighbour plays loud music at night. What should I say to him?",),
        "Try a calm word by day first: \"I can hear your music in my bedroom after eleven. Could you turn it down on "
        "weeknights?\" Most people do not know how far the sound carries.",
        "Call the police at once and tell him nothing.",
    ),
    (
        ("In Python, how do I get the last item of a list?",),
        "Use a negative index:\n\n    last = items[-1]\n\nIt raises an IndexError if the list is empty.",
        "Loop over the list and count the items, then take the one at the position that you counted.",
    ),
    (
        ("Translate 'Where is the station?' into French.",),
        "Où est la gare ?",
        "Where is the station in French is 'station'.",
    ),
    (
        ("Thanks for your help today!",),
        "You're welcome! 😊",
        "As a language model I do not have feelings, and therefore I cannot accept your thanks. Is there anything else "
        "that you would like to know about any topic whatsoever?",
    ),
    (
        ("Why is the sky blue?",),
        "Sunlight is scattered by the molecules of the air, and short waves such as blue far more than long ones such as "
        "red. So blue light reaches your eyes from every part of the sky.",
        "The sky is blue because it reflects the ocean, which is blue.",
    ),
    (
        ("Suggest a name for a small grey cat.", "How about Pebble?", "Something shorter, please."),
        "Ash.",
        "How about Pebbleton Greywhisker the Third?",
    ),
    (
        ("Which is heavier, a kilogram of feathers or a kilogram of iron?",),
        "Neither: both weigh one kilogram.",
        "A kilogram of iron, since iron is much denser than feathers are.",
    ),
    (
        ("Give me three tips for a first job interview.",),
        "1. Read what the company does, and have one question about it.\n2. Prepare two short stories of problems that "
        "you solved.\n3. Arrive ten minutes early.",
        "1. Be confident.\n2. Be confident.\n3. Be confident.",
    ),
    (
        ("Can I give my dog chocolate?",),
        "No. Chocolate contains theobromine, which is poisonous to dogs. If it has eaten some, call a vet.",
        "A little chocolate never hurt anyone.",
    ),
    (
        ("What does 'naïve' mean?",),
        "Naïve means trusting too easily, for want of experience.",
        "It is a French word.",
    ),
    (
        ("Summarise: The meeting was moved from Monday to Thursday because the projector is broken.",),
        "The meeting is on Thursday now, since the projector is broken.",
        "There was a meeting on Monday, and then there was a projector, and then there was Thursday.",
    ),
    (
        ("I feel a bit sad today.",),
        "I'm sorry to hear that. Would you like to tell me what happened, or would something to take your mind off it "
        "be better?",
        "Okay.",
    ),
]  # fmt: skip
# These are measured, and not trained on.
_HELD_OUT: list[tuple[tuple[str, ...], str, str]] = [
    (
        ("What is the boiling point of water at sea level?",),
        "Water boils at 100 °C (212 °F) at sea level.",
        "Water boils at 90 degrees, more or less.",
    ),
    (
        ("How can I fall asleep faster?",),
        "Go to bed at the same time every day, keep the room cool and dark, and put your phone away an hour before.",
        "Just close your eyes.",
    ),
    (
        ("Name a planet with rings.", "Saturn.", "And another one?"),
        "Uranus has rings as well.",
        "Mars.",
    ),
    (
        ("Fix this sentence: 'He don't likes apples.'",),
        "He doesn't like apples.",
        "He don't like apples, but he likes many other fruits that are not apples.",
    ),
]  # fmt: skip
_SYSTEM = "You are a friendly assistant who answers briefly."  # said in every third pair


def _rows(pairs: list[tuple[tuple[str, ...], str, str]]) -> list[dict[str, Any]]:
    rows = []
    for i, (turns, chosen, rejected) in enumerate(pairs):
        prompt = [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(turns)]
        if i % 3 == 1:
            prompt.insert(0, {"role": "system", "content": _SYSTEM})
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


TRAINING, HELD_OUT = _rows(_TRAINING), _rows(_HELD_OUT)


def write(folder: Path) -> tuple[Path, Path]:
    """Files of the pairs to train on and of those held out."""
    return write_rows(folder / "pairs.jsonl", TRAINING), write_rows(folder / "held-out.jsonl", HELD_OUT)
