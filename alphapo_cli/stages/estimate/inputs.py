"""Model and data of a plan: as training prepares them, without weights, and without a tokenizer where there is none yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import ModelConfig, ScratchConfig, TrainConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.loading import TOKENIZER_FILES, load_tokenizer, model_limits, train_tokenizer
from alphapo_cli.modeling.locations import ModelSource
from alphapo_cli.stages.estimate.skeleton import declared_dtype
from alphapo_cli.stages.training.inputs import InputsBuilder
from alphapo_cli.stages.training.raw_pairs import load_text, texts_of

_VOCABULARY = 8192  # of the tokenizer that stands in: texts become rather longer than those of a larger one
_READ = 2000  # texts that it is trained on


class DataBuilder(InputsBuilder):
    """Prepares model and data as training does, and does not read the weights to hash them."""

    weightless = True

    def tokenizer(self, source: ModelSource, cfg: TrainConfig) -> Any:
        """The tokenizer beside config.json.

        Returns:
            The tokenizer; where there are neither weights nor that, one that is trained on the pairs.

        Raises:
            UsageError: a hub model's files are not there.
        """
        if lacks_tokenizer(source):
            train, _ = load_text(cfg.data, cfg.probe)
            size = min(_VOCABULARY, model_limits(source, cfg.model).tokens)
            made = train_tokenizer(ScratchConfig(vocab_size=size), texts_of(train)[:_READ])
            made.model_max_length = int(1e30)  # as transformers has it where no file says it
            return made
        try:
            return load_tokenizer(source, cfg.model.trust_remote_code)
        except UsageError as error:
            if source.local or "trust_remote_code" in str(error):
                raise
            folder = source.asked.rpartition("/")[2]
            revision = f" --revision {source.revision}" if source.revision else ""
            raise UsageError(
                f"{source.key}={source.asked}: is not in the cache and could not be had from the hub; a plan reads a few small "
                f"files: hf download {source.asked} config.json tokenizer.json tokenizer_config.json{revision} --local-dir "
                f"./{folder}, then {source.key}=./{folder}"
            ) from error

    def weights_hash(self, source: ModelSource) -> str:
        """No hash."""
        return ""


NO_WEIGHTS = "the weights are not there, or not all"


def lacks_tokenizer(source: ModelSource) -> bool:
    """Whether a directory without weights has no tokenizer either."""
    return not source.weights and not any((Path(source.location) / name).is_file() for name in TOKENIZER_FILES)


def missing(source: ModelSource, cfg: ModelConfig) -> list[str]:
    """What a plan has to assume of a model that is not there as a whole, as notes."""
    if source.local and source.weights:
        return []
    named = f"{source.key}={source.asked}"
    if not source.local:
        return [f"{named}: config.json and tokenizer were read, no weights: their size is that of the config"]
    dtype = str(declared_dtype(source, cfg)).removeprefix("torch.")
    notes = [f"{named}: {NO_WEIGHTS}: their number and dtype ({dtype}) are those of config.json"]
    if lacks_tokenizer(source):
        notes.append(
            f"{named}: no tokenizer there: lengths are those of one of {_VOCABULARY:,} tokens that was trained on the pairs, "
            "rather longer than a larger one's"
        )
    return notes
