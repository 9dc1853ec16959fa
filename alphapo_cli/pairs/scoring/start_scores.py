"""Scores of pairs under the model that training will start from (CHES and others), for `select` and `order`.

They are those of `alphapo measure` and `data.select` (see `probe.pair_scores`), of prompt and answers as training tokenises
them, and are kept like the scores of answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alphapo_cli.config.schema import DataConfig, ModelConfig
from alphapo_cli.data.text_pairs import TextPair, digest
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.data.tokenise import Encoded, encode_pairs
from alphapo_cli.generation.target_model import TargetModel
from alphapo_cli.modeling.loading import load_model
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.pairs.candidates import Candidates
from alphapo_cli.pairs.rules import Pair
from alphapo_cli.pairs.scoring.log_probs import check_template, context_of_prompt, side_of, template_settings
from alphapo_cli.probe.pair_scores import model_scores, token_scores
from alphapo_cli.probe.score_names import NAMES
from alphapo_cli.storage.jsonl import LineLog, read_jsonl


class StartScores:
    """The scores `NAMES` of pairs under one model, which is loaded where one of them is not kept.

    Attributes:
        asked: pairs that the model was asked for.
    """

    def __init__(self, subject: TargetModel, data: DataConfig, batch_size: int, cache: Path) -> None:
        self.subject, self.data, self.batch_size, self.cache = subject, data, batch_size, cache
        self.asked = 0

    def identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on besides the pairs."""
        return {"scores": "pairs", "model": self.subject.identity(self.cache), "template": template_settings(self.data)}

    def check(self, prompts: Sequence[Candidates]) -> None:
        """UsageError where prompts are messages and the tokenizer has no chat template."""
        check_template(self.subject, self.data, prompts)

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, list[float]]:
        """The numbers of every pair, by name; NaN for a pair that does not fit into the model's context."""
        keys = [digest([pair.key]) for pair in pairs]
        file = self.cache / "scores" / f"{digest(self.identity())}.jsonl"
        with LineLog(file, "alphapo pairs") as log:
            found: dict[str, list[float | None]] = {row["key"]: row["scores"] for row in read_jsonl(file)}
            if any(key not in found for key in keys):
                # All of them, whatever is kept: a value does not depend on what a kill has left.
                made = self._scores(pairs)
                rows = {
                    key: [None if math.isnan(made[name][i]) else float(made[name][i]) for name in NAMES]
                    for i, key in enumerate(keys)
                    if key not in found
                }
                log.add(*({"key": key, "scores": values} for key, values in rows.items()))
                found |= rows
                self.asked += len(rows)
        table = [[math.nan if value is None else value for value in found[key]] for key in keys]
        return {name: [row[place] for row in table] for place, name in enumerate(NAMES)}

    def _scores(self, pairs: Sequence[Pair]) -> Mapping[str, np.ndarray]:
        encoded = self._encoded(pairs)
        lengths = encoded.prompt.lengths + np.maximum(encoded.chosen.lengths, encoded.rejected.lengths)
        limit = self.subject.context
        fits = np.flatnonzero(lengths <= limit) if limit is not None else np.arange(len(lengths))
        values = {name: np.full(len(pairs), np.nan) for name in NAMES}
        if len(fits):
            data = TokenPairs(
                encoded.prompt, encoded.chosen, encoded.rejected, tuple(pairs[i].key for i in encoded.kept),
                np.asarray(encoded.kept),
            ).select(fits.tolist())  # fmt: skip
            scores = {**token_scores(data), **self._of_model(data)}
            places = np.asarray(encoded.kept)[fits]
            for name in NAMES:
                values[name][places] = scores[name]
        return values

    def _of_model(self, data: TokenPairs) -> Mapping[str, np.ndarray]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        settings = ModelConfig(dtype=self.subject.dtype, trust_remote_code=self.subject.trust_remote_code)
        policy = PolicyModel(load_model(self.subject.source, settings).to(device), layout="padded")
        pad = self.subject.tokenizer.pad_token_id or 0
        return model_scores(policy, data, batch_size=self.batch_size, pad_id=pad)

    def _encoded(self, pairs: Sequence[Pair]) -> Encoded:
        """Prompt and answers as in training; nothing is cut."""
        texts = []
        for pair in pairs:
            side, context = side_of(pair.candidates), context_of_prompt(pair.candidates, self.data)
            answers = [
                text if isinstance(side, str) else ({"role": "assistant", "content": text},)
                for text in (pair.chosen.text, pair.rejected.text)
            ]
            texts.append(TextPair(side, answers[0], answers[1], context=context))
        whole = replace(
            self.data, max_length=2**30, max_prompt_length=None, on_template_loss="keep", max_unknown=1.0, workers=1
        )
        return encode_pairs(texts, self.subject.tokenizer, whole)
