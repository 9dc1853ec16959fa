"""A sequence classifier as a function from token ids to logits.

The logits are those of the last real token, found from the lengths: transformers looks for the padding id instead, and
where that is also the end token it reads one token early, even in a row without padding. They are never passed through a
sigmoid, which is 1 for every large reward, and are computed in float32 from the last hidden state: 16 bits hold rewards
around 20 in steps of an eighth. `vllm_classifier` is the other engine (`scorer.backend`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alphapo_cli.errors import UsageError, first_line
from alphapo_cli.generation.schema import SubjectConfig
from alphapo_cli.generation.target_model import TargetModel, find
from alphapo_cli.modeling.loading import DTYPES
from alphapo_cli.pairs.scoring.schema import ScorerConfig
from alphapo_cli.pairs.scoring.vllm_classifier import AT_ONCE, VLLMClassifier, backend_of

_NO_HEAD = re.compile(r"ForCausalLM|LMHead|ForConditionalGeneration|ForMaskedLM")


class Classifier:
    """A classifier before its weights are loaded; the first call of `logits` loads them."""

    def __init__(self, cfg: ScorerConfig, cache: Path) -> None:
        """Locate the model and read its tokenizer and configuration; UsageError where they are of no classifier."""
        if cfg.model is None:
            raise UsageError(f"scorer={cfg.name}: which model? type scorer.model=DIRECTORY or a hub name")
        self.cfg, self.cache = cfg, cache
        settings = SubjectConfig(revision=cfg.revision, dtype=cfg.dtype, trust_remote_code=cfg.trust_remote_code)
        self.subject: TargetModel = find(cfg.model, settings, cache, key="scorer.model")
        self.tokenizer = self.subject.tokenizer
        architectures = getattr(self.subject.config, "architectures", None) or []
        if architectures and all(_NO_HEAD.search(str(name)) for name in architectures):
            raise UsageError(
                f"scorer.model={cfg.model}: is a language model ({', '.join(architectures)}), not a sequence classifier; "
                "scorer=logprob or scorer=implicit read one"
            )
        where = f"scorer.model={cfg.model}"
        if self.subject.base is not None:
            raise UsageError(f"{where}: is an adapter; give a classifier with its adapter merged")
        self.backend = backend_of(cfg.backend, self.subject, own_code=self._own_code, where=where)
        self.batch_size = AT_ONCE if self.backend == "vllm" else cfg.batch_size
        self._engine = VLLMClassifier(self.subject, cfg.vllm, self.limit) if self.backend == "vllm" else None
        self._model: Any = None

    @property
    def identity(self) -> dict[str, Any]:
        """What its logits depend on besides the ids."""
        engine = {"backend": self.backend} if self.backend != "transformers" else {}
        if self.subject.dtype != "float32":
            engine["head"] = "float32"  # scores that were kept before had one of 16 bits
        return {**engine, **self.subject.identity(self.cache)}

    def label(self) -> int:
        """Which logit is the score; UsageError where there are several and `scorer.label` names none of them."""
        labels, asked = int(self.subject.config.num_labels), self.cfg.label
        if self._own_code:  # it says itself which number is the score
            return asked or 0
        if asked is None and labels > 1:
            raise UsageError(
                f"scorer.model={self.cfg.model}: has {labels} labels; which one is the reward? type scorer.label=N (0 to "
                f"{labels - 1})"
            )
        if asked is not None and asked >= labels:
            raise UsageError(f"scorer.label={asked}: {self.cfg.model} has {labels} label(s), numbered from 0")
        return asked or 0

    @property
    def _own_code(self) -> bool:
        """Whether the class is of the model's repository, which runs only where `trust_remote_code` was typed."""
        return self.cfg.trust_remote_code and "AutoModelForSequenceClassification" in getattr(
            self.subject.config, "auto_map", {}
        )

    @property
    def limit(self) -> int | None:
        """Most tokens of an input; None for no limit."""
        limits = [n for n in (self.cfg.max_length, self.subject.context) if n is not None]
        return min(limits) if limits else None

    def with_bos(self, ids: Sequence[int]) -> list[int]:
        """The ids with at most one BOS at the beginning, or none (`scorer.bos`)."""
        bos, start = self.tokenizer.bos_token_id, 0
        while bos is not None and start < len(ids) and ids[start] == bos:
            start += 1
        keep = self.cfg.bos == "template" and start > 0
        return [*([int(bos)] if keep else []), *ids[start:]]

    @torch.no_grad()
    def logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """The logits [n, labels] float32 of n rows of ids, each as if it were alone."""
        if self._engine is not None:
            return self._engine.logits(rows)
        model = self._loaded()
        width = max(map(len, rows))
        fill = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
        head = getattr(model, "score", None)
        if head is None or self._own_code:  # an encoder, which pools at its first token, or a class like ArmoRM's
            output = model(input_ids=ids, attention_mask=mask)
            found = getattr(output, "score", None) if self._own_code else None
            return (output.logits if found is None else found.reshape(len(rows), -1)).float().cpu()  # type: ignore[no-any-return]
        states = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        last = torch.tensor([len(row) - 1 for row in rows], device=model.device)
        pooled = states[torch.arange(len(rows), device=model.device), last]
        return head(pooled.float()).cpu()  # type: ignore[no-any-return]

    def close(self) -> None:
        """Free the model."""
        self._model = None
        if self._engine is not None:
            self._engine.close()

    def _loaded(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        if self._model is None:
            source = self.subject.whole
            where = f"scorer.model={self.cfg.model}"
            try:
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    source.location, revision=source.revision, dtype=DTYPES[self.subject.dtype],
                    trust_remote_code=self.cfg.trust_remote_code, output_loading_info=True,
                )  # fmt: skip
            except (OSError, ValueError) as error:
                raise UsageError(f"{where}: cannot be loaded as a sequence classifier ({first_line(error)})") from error
            if info["missing_keys"]:
                missing = sorted(map(str, info["missing_keys"]))[0]
                raise UsageError(f"{where}: its files hold no {missing}, which would be random; take another model")
            self._model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
            if getattr(model, "score", None) is not None and not self._own_code:
                model.score.float()
        return self._model
