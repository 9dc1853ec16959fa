"""The typed schema of every configuration group, with all defaults.

YAML files under conf/ set values; these classes define the keys, types and ranges. Imports no torch, so that a mistyped
key is an error within milliseconds. Ranges are field metadata, checked by `validate.check`.

Parts of an objective (score, shape, link, ...) are functions; their parameters are declared in the function and its
YAML under conf/objective/, and checked against that YAML, so here they are plain mappings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Below it a temperature is 0: logits / T would leave nothing of the noise but round-off.
LOWEST_TEMPERATURE = 1e-6


def _number(default: Any, **limits: Any) -> Any:
    """A field with limits: `ge`, `gt`, `le`, `lt`."""
    return field(default=default, metadata=limits)


def _choice(default: Any, *choices: str) -> Any:
    """A field that takes one of `choices`."""
    return field(default=default, metadata={"choices": choices})


@dataclass
class ObjectiveConfig:
    """A combination of score, shape, link and other parts; see `alphapo_cli.objective.objective` for the loss."""

    name: str = "alphapo"
    score: dict[str, Any] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)
    link: dict[str, Any] = field(default_factory=dict)
    beta: float = _number(2.5, gt=0)
    # Margin subtracted from the reward margin: absolute (gamma) or in units of beta (gamma_beta_ratio), never both.
    gamma: float | None = _number(None)
    gamma_beta_ratio: float | None = _number(None)
    label_smoothing: float = _number(0.0, ge=0, lt=0.5)
    # Weight of the chosen answer's negative log-likelihood (NLL), in the unit of nll_scope.
    nll: float = _number(0.0, ge=0)
    # mean: per token of the answer; sum: over its tokens; tokens: per token of all chosen answers of the step.
    nll_scope: str = _choice("mean", "mean", "sum", "tokens")
    preference: float = _number(1.0, ge=0)  # weight of the preference term
    # How label_smoothing is applied: smooth mixes both labels; unbiased corrects for labels flipped so often.
    label_model: str = _choice("smooth", "smooth", "unbiased")
    label_column: str | None = None  # column with the probability that the chosen answer is the better one
    # Optimizer steps between updates reference <- (1 - reference_mix) reference + reference_mix policy; null: never.
    reference_every: int | None = _number(None, ge=1)
    reference_mix: float = _number(1.0, ge=0, le=1)
    token: dict[str, Any] = field(default_factory=dict)
    margin: dict[str, Any] = field(default_factory=dict)
    weight: dict[str, Any] = field(default_factory=dict)
    regulariser: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)


@dataclass
class LoraConfig:
    """Low-rank adapters through peft; off while `r` is null."""

    r: int | None = _number(None, ge=1)
    alpha: float | None = _number(None, gt=0)  # null: 2 r
    dropout: float = _number(0.0, ge=0, lt=1)
    target_modules: list[str] | None = None  # null: every linear layer but the head


@dataclass
class ScratchConfig:
    """A Llama-architecture model with random weights and a byte-level BPE tokenizer trained on the data."""

    hidden_size: int = _number(256, ge=8)
    intermediate_size: int | None = _number(None, ge=8)  # null: 2.75 x hidden, rounded to 64
    num_hidden_layers: int = _number(4, ge=1)
    num_attention_heads: int = _number(4, ge=1)
    num_key_value_heads: int | None = _number(None, ge=1)  # null: as many as heads
    max_position_embeddings: int = _number(2048, ge=16)
    tie_word_embeddings: bool = True
    vocab_size: int = _number(8192, ge=300)


@dataclass
class ModelConfig:
    """The initial policy and the frozen models beside it. `path` overrides `source`."""

    source: str = _choice("glassbox", "glassbox", "from_scratch", "path")
    path: str | None = None  # run directory, model directory or hub name
    revision: str | None = None
    reference: str | None = None  # null: the policy before its first step
    guide: str | None = None  # a third model, frozen, that some objectives read: TGDPO's guide, MRPO's second reference
    dtype: str = _choice("float32", "float32", "bfloat16", "auto")
    # Implementation. layout=packed takes auto, sdpa and flex (auto: flex on CUDA); layout=padded all but flex.
    attention: str = _choice("auto", "auto", "sdpa", "flex", "eager", "flash_attention_2")
    trust_remote_code: bool = False
    # Every dropout of the model in training (of adapters: lora.dropout); null: as its config.json says.
    dropout: float | None = _number(0.0, ge=0, lt=1)
    # How the frozen base under adapters is held (QLoRA). nf4: bitsandbytes' load_in_4bit with bnb_4bit_quant_type=nf4 and
    # double quantisation; int8: the weights of its load_in_8bit. The compute dtype is model.dtype.
    quantization: str = _choice("none", "none", "nf4", "int8")
    merge: bool = False  # write merged weights instead of an adapter
    lora: LoraConfig = field(default_factory=LoraConfig)
    scratch: ScratchConfig = field(default_factory=ScratchConfig)


@dataclass
class GlassboxConfig:
    """The embedded world: how many pairs, and how its labels are drawn."""

    pairs: int = _number(1024, ge=2)
    label_temperature: float = _number(1.0, ge=0)
    length_bias: float = _number(0.0)  # reward per word that the labeller adds to the true reward
    seed: int = _number(0, ge=0)


@dataclass
class SelectConfig:
    """Which training pairs are kept, by a score of the pair or a column of numbers; see docs/data.md."""

    by: str | None = None  # a score (ches_normalised, edit_distance, ...), a column, or random; null: all are kept
    keep: str | None = _choice(None, "lowest", "highest", "middle")
    share: float | None = _number(None, gt=0, le=1)  # of the pairs that have the number
    count: int | None = _number(None, ge=1)  # of pairs, instead of a share
    min: float | None = _number(None)
    max: float | None = _number(None)
    then: Any = None  # a list of further conditions on what is left, such as [{by: margin, min: 0.5}]


@dataclass
class DataConfig:
    """Preference pairs and how they become token ids."""

    source: str = _choice("glassbox", "glassbox", "files", "hub")
    # Local file, folder or glob pattern, or a list of them: JSONL(.gz), JSON, CSV, Parquet or Arrow, a folder that
    # datasets.save_to_disk wrote, or a copy of a hub data set; of a folder with several splits `split` is read.
    path: Any = field(default=None, metadata={"texts": True})
    eval_path: Any = field(default=None, metadata={"texts": True})
    # Shares of the training pairs by entry of `path`: as many pairs as these allow, none twice; null: all pairs.
    weights: list[float] | None = None
    name: str | None = None  # hub data set
    config: str | None = None
    data_dir: str | None = None  # a folder of the data set, such as HH-RLHF's harmless-base
    revision: str | None = None
    split: str = "train"
    eval_split: str | None = None
    limit: int | None = _number(None, ge=1)
    max_row_mb: float = _number(64.0, gt=0)  # MiB that a line of JSON Lines, or a field of CSV, may have
    # auto: by the columns; dialogue: whole "\n\nHuman: ... \n\nAssistant: ..." texts in chosen and rejected.
    # answers: a list of scored answers a row; unpaired: one answer a row, labelled good or bad.
    format: str = _choice("auto", "auto", "pairs", "messages", "dialogue", "answers", "unpaired")
    prompt_column: str = "prompt"
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    gold_column: str | None = None  # a third answer beside chosen and rejected; null: none
    system_column: str = "system"  # a row's system text; it wins over `system`
    tools_column: str = "tools"  # a row's tool schemas, as a list or as JSON text
    ignore_columns: list[str] = field(default_factory=list)  # not read, whatever they hold
    # true: an answer is all that follows the prompt column, or without one the messages that all answers share; its
    # assistant turns are trained on, turns of others are masked. false: an answer is the last turn, and rows whose
    # answers differ before it are left out.
    trajectories: bool = False
    # Answers per list that are used: the best-scored ones and the worst; null: as many as the shortest list has.
    answers: int | None = _number(None, ge=2)
    # auto: the tokenizer's chat template where it has one, plain text otherwise.
    template: str = _choice("auto", "auto", "chat", "plain")
    system: str | None = None
    chat_template_kwargs: dict[str, Any] = field(
        default_factory=dict
    )  # arguments of the template: enable_thinking, ...
    # The day that templates write as today's (Llama 3.x). The default is that of Llama 3's template.
    date: str = field(default="2024-07-26", metadata={"date": True})
    # Special tokens that a text spells (<|im_end|> typed in a prompt). parse: tokens, as in transformers and vLLM;
    # escape: plain text; refuse: an error.
    special_tokens_in_text: str = _choice("parse", "parse", "escape", "refuse")
    # What happens to rows of whose answers the chat template leaves out a part. keep: trained on what is left of them.
    on_template_loss: str = _choice("refuse", "refuse", "skip", "keep")
    # How SimPO counts the tokens of an answer, on which every mean per token depends. completion_includes_header: what the
    # template writes before an answer (the assistant's header) is counted too, and every prompt begins with a BOS.
    # second_end_token: all that it writes after an answer is counted, and the tokenizer's EOS follows its end of turn.
    completion_includes_header: bool = False
    second_end_token: bool = False
    max_length: int = _number(2048, ge=2)
    max_prompt_length: int | None = _number(None, ge=1)
    duplicates: str = _choice("keep", "keep", "drop")
    max_unknown: float = _number(0.01, ge=0, le=1)  # largest share (0 to 1) of unknown tokens that is no error
    workers: int | None = _number(None, ge=1)  # processes that tokenise; null: one, or all cores for large data
    select: SelectConfig = field(default_factory=SelectConfig)
    glassbox: GlassboxConfig = field(default_factory=GlassboxConfig)


@dataclass
class ProbeConfig:
    """The fixed held-out pairs on which displacement is measured."""

    pairs: int | None = _number(None, ge=1)  # null: 256, and at most a tenth of the data
    # Optimizer steps between measurements; null: 16, or more where these would cost more than about a sixteenth of
    # training (see data_order.probe_every). The first and the last step are always measured.
    every: int | None = _number(None, ge=1)
    batch_size: int = _number(8, ge=1)  # pairs; a small batch fits a CPU's cache; changes round-off only
    # Answers sampled to held-out prompts at every measurement, one each; 0: none, null: 256 in the embedded world, and
    # for a model of one's own 8 of up to 256 tokens before the first step and after the last, to be read.
    samples: int | None = _number(None, ge=0)
    sample_every: int | None = _number(None, ge=1)  # optimizer steps; null: as often as the probe
    max_new_tokens: int = _number(40, ge=1)
    temperature: float = _number(1.0, ge=0)
    first_position: bool = False  # also compare the distributions at the first position of chosen answers with step 0
    # Openings of refusals, such as ["I can't","I'm sorry"]: the share of sampled answers that begin with one, without
    # regard to case, is measured over training; [] measures none.
    refusals: list[str] = field(default_factory=list)
    # Each answer is sampled by itself, so that it does not depend on what else is in its batch; null: where the weights
    # have 16 bits, in which it does.
    exact: bool | None = None


@dataclass
class TrainerConfig:
    """Arguments of transformers.TrainingArguments by their names there, and a few of our own.

    One optimizer step covers per_device_train_batch_size x gradient_accumulation_steps x processes pairs.
    """

    max_steps: int = _number(-1, ge=-1, lt=2**31)
    num_train_epochs: float = _number(1.0, gt=0)
    per_device_train_batch_size: int = _number(8, ge=1)
    gradient_accumulation_steps: int = _number(1, ge=1)
    # Tokens of a micro-batch per process, padding included; null: per_device_train_batch_size pairs. The optimizer step
    # covers the same pairs.
    tokens_per_batch: int | None = _number(None, ge=1)
    logit_chunk_mb: float = _number(
        64.0, gt=0
    )  # MiB of float32 logits held at a time; larger logits are chunked and recomputed
    learning_rate: float = _number(1e-6, ge=0)
    lr_scheduler_type: str = _choice(
        "cosine", "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    )
    warmup_ratio: float = _number(0.1, ge=0, le=1)
    warmup_steps: int = _number(0, ge=0)  # overrides warmup_ratio when above 0
    weight_decay: float = _number(0.0, ge=0)
    adam_beta1: float = _number(0.9, ge=0, lt=1)
    adam_beta2: float = _number(0.999, ge=0, lt=1)
    adam_epsilon: float = _number(1e-8, gt=0)
    max_grad_norm: float = _number(1.0, ge=0)
    # The order of pairs. shuffled: anew in each epoch; given: as in the data; stages: by their column "stage", shuffled
    # within each.
    order: str = _choice("shuffled", "shuffled", "given", "stages")
    optim: str = "adamw_torch_fused"  # one pass over the weights, on the CPU too
    bf16: bool = False
    # Train bfloat16 weights whole although model.dtype's 8 bits lose every update of this learning rate.
    accept_lost_updates: bool = False
    gradient_checkpointing: bool = False
    logging_steps: int = _number(1, ge=1)
    save_steps: int = _number(500, ge=1)  # optimizer steps between checkpoints
    save_total_limit: int | None = _number(1, ge=1)  # checkpoints kept during the run; null: all
    # model/ is that of the step after 0 at which a metric of the probe was best; its weights are kept until the end.
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None  # a key that `alphapo metrics` lists
    greater_is_better: bool | None = None  # null: as `alphapo metrics` says of the metric
    # Fractions of training, above 0 and below 1, after which the model is kept as models/step-N/ beside the last one.
    save_models_at: list[float] = field(default_factory=list)
    use_cpu: bool = False
    threads: int | None = _number(None, ge=1, le=1024)  # torch threads; null: torch's own choice


@dataclass
class ShardingConfig:
    """Weights, gradients and optimizer state spread over the processes of torchrun, by torch's FSDP2."""

    mode: str = _choice("none", "none", "fsdp")  # none: every process holds the whole model
    reshard_after_forward: bool = True  # a layer's whole weights are freed after its forward pass, gathered again later
    cpu_offload: bool = False  # shards are kept in the memory of the host and the optimizer runs there; needs CUDA
    # Processes that share one copy of the model, such as the GPUs of a node; replicated across such groups. null: all.
    shard_size: int | None = _number(None, ge=2)


@dataclass
class GuardConfig:
    """Limits that end a run early; null: no limit."""

    non_finite: bool = True  # fail on weights, loss or log-probs that are NaN or infinite
    max_chosen_drop: float | None = _number(None, gt=0)  # nats per token, mean over the probe
    max_repetition: float | None = _number(
        None, ge=0, le=1
    )  # share (0 to 1) of repeated 4-grams in the sampled answers
    max_gradient_norm: float | None = _number(None, gt=0)  # L2 norm before clipping
    # Readings of trainer.metric_for_best_model one after another that are no better than the best one so far.
    patience: int | None = _number(None, ge=1)


@dataclass
class TrackingConfig:
    """Weights & Biases mirrors metrics.jsonl; WANDB_MODE overrides `mode` unless that is `disabled`."""

    mode: str = _choice("offline", "offline", "online", "disabled")
    project: str = "alphapo"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    pictures: bool = True


@dataclass
class RunConfig:
    """Name and parent directory of the run directory."""

    name: str | None = None  # null: <objective>-<hash8 of the settings that differ from their defaults>
    dir: str = "runs"


@dataclass
class TrainConfig:
    """The resolved configuration of `alphapo train`."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    layout: str = _choice("packed", "packed", "padded")
    seed: int = _number(0, ge=0, lt=2**32)  # the range that numpy takes
