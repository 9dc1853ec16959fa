"""Values of single tokens: log-probs before and now, implicit reward, gradient weight, and the text of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe.displacement import SIDES, ProbeValues
from alphapo_cli.probe.pair_scores import Numbers
from alphapo_cli.probe.probe import BatchObservation

_LEAD = 4  # tokens before a piece that are decoded along with it: a tokenizer's text depends on what precedes


class TokenLogs:
    """Collects the log-prob of every trained token of the first two answers of P pairs."""

    def __init__(self) -> None:
        self.logps: dict[tuple[int, int], npt.NDArray[np.float32]] = {}  # (pair, side) -> [tokens] nats

    def __call__(self, seen: BatchObservation) -> None:
        """Take the log-probs of a batch."""
        tokens = seen.batch.tokens
        counts = torch.bincount(tokens.answer, minlength=tokens.num_sides * tokens.num_pairs).tolist()
        for answer, logps in enumerate(seen.logps.float().cpu().split(counts)):
            side, pair = divmod(answer, tokens.num_pairs)
            if side < len(SIDES):
                self.logps[seen.chunk[pair], side] = logps.numpy()


def score_slopes(
    objective: Objective, values: ProbeValues, reference: Numbers | None, pairs: TokenPairs
) -> Numbers | None:
    """Derivative of each answer's score by the log-prob of one of its tokens.

    Args:
        objective: the objective.
        values: of P pairs.
        reference: [K, P] summed reference log-probs, nats; None: the objective reads none.
        pairs: the pairs, with their columns.

    Returns:
        [K, P]; None for an objective that weighs tokens or reads more of them than their sum.
    """
    if objective.weighs_tokens or objective.needs_statistics or objective.needs_kl:
        return None
    sums = torch.from_numpy(values.sums).requires_grad_(True)
    lengths = torch.from_numpy(values.lengths)
    answers = AnswerLogProbs(
        sums,
        lengths,
        None if reference is None else torch.from_numpy(reference),
        columns={name: torch.from_numpy(column) for name, column in pairs.columns.items()},
        present=None if bool((lengths > 0).all()) else lengths > 0,
    )
    (slopes,) = torch.autograd.grad(objective.scores(answers).sum(), sums)
    found: Numbers = slopes.numpy()
    return found


def rows(
    before: TokenLogs, now: TokenLogs, pairs: TokenPairs, weights: Numbers | None, beta: float, tokenizer: Any
) -> list[dict[str, Any]]:
    """Rows of tokens.jsonl, one an answer.

    Args:
        before: log-probs under the start.
        now: log-probs under the model.
        pairs: P pairs.
        weights: [K, P] derivative of the loss by a token's log-prob; None: not known.
        beta: scales the implicit reward beta (log p - log p of the start) (2404.12358).
        tokenizer: decodes.

    Returns:
        Pair, side, prompt, for each token its id, text, log-prob before and now in nats and implicit reward, and the
        gradient weight of each.
    """
    found = []
    for pair, side in sorted(now.logps):
        after, was = now.logps[pair, side], before.logps[pair, side]
        if not len(after):
            continue
        ids = pairs.answers[side][pair]
        texts = pieces(tokenizer, ids.tolist())
        if pairs.turns:  # the text between trained tokens is not shown
            texts = [text for text, turn in zip(texts, pairs.turns[side][pair], strict=True) if turn >= 0]
            ids = ids[pairs.turns[side][pair] >= 0]
        weight = None if weights is None else float(weights[side, pair])
        change = after.astype(np.float64) - was
        found.append(
            {
                "pair": pair,
                "row": int(pairs.index[pair]) + 1,
                "side": SIDES[side],
                "prompt": tokenizer.decode(pairs.prompt[pair].tolist()),
                "ids": ids.tolist(),
                "tokens": texts,
                "before": was.tolist(),
                "now": after.tolist(),
                "reward": (beta * change).tolist(),
                "gradient_weight": weight,
            }
        )
    return found


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, which together are the text of all; of tokens that end inside a character, the last has it.

    Args:
        tokenizer: a transformers tokenizer.
        ids: the tokens.

    Returns:
        One text a token.
    """
    found: list[str] = []
    done = 0
    for end in range(1, len(ids) + 1):
        lead = list(ids[max(0, done - _LEAD) : done])
        before, text = tokenizer.decode(lead), tokenizer.decode([*lead, *ids[done:end]])
        if text.endswith("\ufffd") and end < len(ids):
            found.append("")
            continue
        found.append(text[len(before) :] if text.startswith(before) else tokenizer.decode(list(ids[done:end])))
        done = end
    return found
