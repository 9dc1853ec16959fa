"""Catalogue of the metrics that a run writes: the meaning of each in one sentence, its unit, and what a bad value is.

The sentence of a key with a suffix (`/p50`, `_sum`) or a prefix (`train/`, `source/NAME/`, `subset/NAME/`) is derived from the plain
key's entry.
Imports no torch, so that `alphapo metrics` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from alphapo_cli.errors import UsageError, nearest

_PER_TOKEN = "nats per token"
_QUANTILES = {"/p10": "10th percentile", "/p50": "Median", "/p90": "90th percentile"}


@dataclass(frozen=True)
class Metric:
    """One entry of the catalogue; its sentence reads `<statistic> <quantity>, in <unit>`."""

    statistic: str
    quantity: str
    unit: str | None = None
    bad: str | None = None  # what a bad value looks like, and what it means
    quantiles: bool = False  # `<key>/p10`, `/p50` and `/p90` over the pairs exist
    summed: bool = False  # `<key>_sum` exists: summed over the completion's tokens

    @property
    def sentence(self) -> str:
        """What the metric measures, with its unit where it has one."""
        unit = f", in {self.unit}" if self.unit else ""
        return f"{self.statistic} {self.quantity}{unit}."


def _mean(quantity: str, unit: str | None, bad: str | None = None, *, summed: bool = False) -> Metric:
    return Metric("Mean over the probe pairs of", quantity, unit, bad, quantiles=True, summed=summed)


def _share(quantity: str, bad: str | None = None) -> Metric:
    return Metric("Share (0 to 1) of probe pairs", quantity, None, bad)


# Keys of the displacement probe, measured on fixed held-out pairs that are the same for every run of a sweep.
PROBE: dict[str, Metric] = {
    "displacement/chosen": _mean(
        "the chosen completion's log-prob now minus its log-prob at step 0, divided by its number of tokens",
        _PER_TOKEN,
        "below 0 and falling: training makes the answers people preferred less likely (likelihood displacement)",
        summed=True,
    ),
    "displacement/rejected": _mean(
        "the rejected completion's log-prob now minus its log-prob at step 0, divided by its number of tokens",
        _PER_TOKEN,
        "above 0: the answers people turned down become more likely",
        summed=True,
    ),
    "displacement/share_chosen_down": _share(
        "whose chosen completion is less likely now than at step 0",
        "above about 0.5: most preferred answers are being pushed away",
    ),
    "displacement/quadrant/up_up": _share("of which neither completion became less likely"),
    "displacement/quadrant/up_down": _share(
        "whose rejected completion became less likely and whose chosen completion did not",
        "small: this is the quadrant that training aims at",
    ),
    "displacement/quadrant/down_up": _share(
        "whose chosen completion became less likely and whose rejected completion did not",
        "well above 0: pairs are being learnt the wrong way round",
    ),
    "displacement/quadrant/down_down": _share(
        "whose chosen and rejected completions both became less likely",
        "large: the margin grows only because the rejected side falls faster, and probability goes to other text",
    ),
    "displacement/margin_from_chosen": Metric(
        "Ratio of",
        "the mean growth of the chosen reward to the mean growth of the reward margin since step 0, null while the "
        "margin has not grown",
        None,
        "below 0: the whole growth of the margin comes from pushing the rejected side down",
    ),
    "displacement/rejected_to_chosen": Metric(
        "Ratio of",
        "displacement/rejected to displacement/chosen, the slope of the path that both take since step 0; null while the "
        "chosen completions have moved by rounding alone",
        None,
        "falling towards 1 from above while both fall: the rejected side's drop has turned into forgetting both; below 0 "
        "the two part, as they should",
    ),
    "rewards/chosen": _mean("the chosen completion's implicit reward, beta times its shaped score", "reward units"),
    "rewards/rejected": _mean("the rejected completion's implicit reward, beta times its shaped score", "reward units"),
    "rewards/margins": _mean(
        "the chosen reward minus the rejected reward, before any target margin (gamma) is taken off",
        "reward units",
        "flat near 0: nothing is learnt; still growing while the win rate falls: over-optimisation",
    ),
    "rewards/accuracies": _share(
        "whose chosen reward is above the rejected reward; a margin within rounding is a tie and counts half",
        "near 0.5 at the end: no better than a coin; near 1 on train/ only: overfitting",
    ),
    "logps/chosen": _mean("the chosen completion's log-prob divided by its number of tokens", _PER_TOKEN, summed=True),
    "logps/rejected": _mean(
        "the rejected completion's log-prob divided by its number of tokens", _PER_TOKEN, summed=True
    ),
    "ranking/accuracy": _share(
        "whose chosen completion has the higher summed log-prob (half where the two differ by rounding alone)",
        "unchanged while the reward accuracy rises: the reward has learnt what the likelihood has not",
    ),
    "ranking/accuracy_length_normalised": _share("whose chosen completion has the higher log-prob per token"),
    "ranking/against_start": _share(
        "whose chosen completion gained more log-prob since step 0 than the rejected one (DPO's reward with the start as "
        "reference; half where the two differ by rounding alone)"
    ),
    "ranking/against_start_length_normalised": _share(
        "whose chosen completion gained more log-prob per token since step 0 than the rejected one"
    ),
    "ranking/idealised_accuracy": _share(
        "that DPO's optimum at objective.beta would rank right by summed log-prob, a tie counting half: from the start's "
        "log-probs and the probability of each preference (column win_probability or objective.label_column)",
        "ranking/accuracy far below it: the gap that training has left to what its loss allows",
    ),
    "ranking/idealised_accuracy_length_normalised": _share(
        "that DPO's optimum at objective.beta would rank right were log-probs counted per token, a tie counting half"
    ),
    "ranking/flipped": _share(
        "whose order by summed log-prob differs from their order at step 0; from or to a tie counts half"
    ),
    "gradient_weight/chosen": _mean(
        "the derivative of the preference term of the loss (the NLL term left out) with respect to the chosen "
        "completion's score, negative where a step raises it",
        "loss per unit of score",
        "near 0 on most pairs: the loss has let go of the chosen side",
    ),
    "gradient_weight/rejected": _mean(
        "the derivative of the preference term of the loss (the NLL term left out) with respect to the rejected "
        "completion's score, positive where a step lowers it",
        "loss per unit of score",
        "far larger in size than on the chosen side: pushing down dominates, and displacement follows",
    ),
    "shape/slope": Metric(
        "Mean over both completions of the probe pairs of",
        "h'(s), the slope of the shape at the completion's score",
        None,
        "far above 1: at the same beta and learning rate steps are that much larger, until clipping sets their size",
    ),
    "kl/reference": Metric(
        "Exact mean over the tokens of the chosen completions of",
        "KL(policy now || policy at step 0) of the next-token distribution",
        _PER_TOKEN,
        "growing without the win rate: the policy drifts and gains nothing by it",
    ),
    "entropy/chosen": Metric(
        "Mean over the tokens of the chosen completions of",
        "the entropy of the policy's next-token distribution",
        _PER_TOKEN,
        "falling towards 0: the policy collapses onto a few texts",
    ),
}

# Only in the embedded world, from answers sampled for held-out prompts.
GLASSBOX: dict[str, Metric] = {
    "glassbox/true_reward": Metric(
        "Mean over the sampled answers of",
        "the true reward that the labels were drawn from",
        "reward units",
        "falling while rewards/margins rises: over-optimisation",
    ),
    "glassbox/true_win_rate": Metric(
        "Share (0 to 1) of prompts",
        "whose sampled answer has a higher true reward than the base model's sample, a tie counting half",
        None,
        "below 0.5: worse than before training",
    ),
    "glassbox/length": Metric(
        "Mean length of",
        "the sampled answers",
        "tokens",
        "growing far beyond the base's: length is what the policy has learnt",
    ),
}

# 95 % interval of glassbox/true_win_rate. Other seeds may differ by more: it is of this trained model.
BOUNDS: dict[str, Metric] = {
    f"glassbox/true_win_rate/{end}": Metric(
        f"{name} end of", "the 95 % interval of glassbox/true_win_rate over prompts"
    )
    for end, name in (("low", "Lower"), ("high", "Upper"))
}

# From answers sampled to the same prompts at every measurement (probe.samples).
SAMPLES: dict[str, Metric] = {
    "samples/length": Metric(
        "Mean length of", "the sampled answers", "tokens", "growing without end: length is what the policy has learnt"
    ),
    "samples/repetition": Metric(
        "Mean over the sampled answers of",
        "the share (0 to 1) of its 4-grams of tokens that occurred in it before",
        None,
        "rising: the policy loops",
    ),
    "samples/refusals": Metric(
        "Share (0 to 1) of the sampled answers",
        "that begin like a refusal (probe.refusals)",
        None,
        "falling on prompts that should be refused: displacement turns refusals into compliance",
    ),
}

# From generating and evaluating a trained model (`alphapo run`, sweeps with a judge).
EVAL: dict[str, Metric] = {
    "eval/win_rate": Metric(
        "Share (0 to 1) of prompts",
        "whose answer the judge prefers to the reference's, preferences between 0 and 1 counting in part",
        None,
        "below 0.5: worse than the reference",
    ),
    "eval/length_controlled_winrate": Metric(
        "Share (0 to 1) of prompts", "that would be won were both answers of equal length (AlpacaEval 2)"
    ),
    "eval/discrete_win_rate": Metric("Share (0 to 1) of prompts", "won, a draw counting half"),
    "eval/standard_error": Metric("Standard error of", "eval/win_rate over prompts"),
    "eval/lc_standard_error": Metric(
        "Spread over prompts of",
        "eval/length_controlled_winrate, AlpacaEval's column, which leaves out the fit's own error",
    ),
    "eval/lc_bootstrap_error": Metric("Standard error of", "eval/length_controlled_winrate over prompts, by bootstrap"),
    "eval/avg_length": Metric("Mean length of", "the evaluated answers", "characters"),
    "eval/n_total": Metric("Number of", "prompts that were judged"),
    "eval/true_win_rate": Metric(
        "Share (0 to 1) of prompts", "whose evaluated answer has a higher true reward than the reference's"
    ),
    "eval/true_reward": Metric("Mean over the evaluated answers of", "the true reward", "reward units"),
}


_SCORES = {
    "ches": "CHES",
    "ches_normalised": "length-normalised CHES",
    "inner_product": "the inner product of both answers' summed states",
    "last_inner_product": "the inner product of both answers' last states",
    "edit_distance": "the edit distance of both answers",
    "common_prefix": "the share of tokens that both answers begin with",
    "length_ratio": "the ratio of lengths",
    "reference_gap": "the start's log-prob gap",
    "reference_gap_per_token": "the start's log-prob gap per token",
    "start_prefers_chosen": "the order under the start",
    "idealised_margin": "the margin at DPO's optimum",
}


def _score(quantity: str, unit: str | None = None, bad: str | None = None) -> Metric:
    return Metric("Mean over the probe pairs of", quantity, unit, bad, quantiles=True)


_ALIKE = "high: the model finds the two answers alike, and the chosen one is predicted to fall with the rejected one"

# Scores of pairs under the model that training starts from (`alphapo measure`, data.select); and where the probability
# of chosen tokens went, at the first completion position (`first`) and where they fell most (`falls`).
MEASURE: dict[str, Metric] = {
    "pairs/ches": _score(
        "CHES, the inner product of both answers' summed last hidden states minus the chosen one's squared norm",
        None,
        _ALIKE,
    ),
    "pairs/ches_normalised": _score(
        "CHES of the hidden states' means over each answer's tokens instead of their sums", None, _ALIKE
    ),
    "pairs/inner_product": _score("the inner product of both answers' summed last hidden states"),
    "pairs/last_inner_product": _score("the inner product of the hidden states that predict both answers' last tokens"),
    "pairs/edit_distance": _score("the edit distance of both answers' tokens over the longer length"),
    "pairs/common_prefix": _score("the number of tokens that both answers begin with over the longer length"),
    "pairs/length_ratio": _score("the chosen over the rejected completion's number of tokens"),
    "pairs/reference_gap": _score("the chosen minus the rejected completion's log-prob under the start", "nats"),
    "pairs/reference_gap_per_token": _score(
        "the difference of both completions' log-probs under the start, each divided by its number of tokens",
        _PER_TOKEN,
    ),
    "ranking/start_accuracy": _share(
        "whose chosen completion is the likelier one under the start, a tie counting half"
    ),
    **{
        f"mass/{place}/{name}": Metric(f"Mean over {where} of", quantity, None, bad)
        for place, where in (
            ("first", "the chosen completions' first positions"),
            ("falls", "the positions at which chosen tokens fell most"),
        )
        for name, quantity, bad in (
            ("moved", "the probability that moved from tokens that fell to tokens that grew since step 0", None),
            (
                "to_rejected",
                "the probability gained by the rejected answer's token where both answers begin alike so far",
                None,
            ),
            (
                "to_neither",
                "the change of the probability of all tokens but the chosen answer's and, where both answers begin alike so "
                "far, the rejected answer's",
                "well above 0: what both answers lost went to text that nobody rated",
            ),
            ("to_end", "the probability gained by end tokens", "large: the policy learns to stop early"),
            (
                "to_other",
                "the probability gained by all other tokens",
                "most of what moved: probability goes to other text",
            ),
            (
                "top10",
                "the probability of the ten likeliest tokens",
                "falling: probability spreads over unlikely tokens",
            ),
            ("top10_change", "the change of the ten likeliest tokens' probability since step 0", None),
            ("top10_entropy", "the sum over the ten likeliest tokens of -p log p, nats", "falling: the policy hardens"),
            ("top10_entropy_change", "the change of that sum over the ten likeliest tokens since step 0, nats", None),
            ("likeliest_changed", "whether the likeliest token is another one than at step 0", None),
            (
                "chosen_left_top10",
                "whether the chosen token was among the ten likeliest at step 0 and is not now",
                None,
            ),
        )
    },
}

# How well each score, taken before training, has foretold what became of the chosen answers (probe.scores).
FORETOLD: dict[str, Metric] = {
    f"foretold/{name}{end}": Metric(
        f"{title} Spearman's rank correlation over the probe pairs of",
        f"{what} with displacement/chosen",
        None,
        "near 0: the score tells nothing of who falls" if name == "ches" and not end else None,
    )
    for name, what in _SCORES.items()
    for end, title in (
        ("", "The value of"),
        ("/low", "Lower end of the 95 % interval of"),
        ("/high", "Upper end of the 95 % interval of"),
    )
} | {"foretold/pairs": Metric("Number of", "probe pairs with both answers, over which foretold/ches is taken")}

# Values of the training batches that have no counterpart on the probe.
TRAIN: dict[str, Metric] = {
    "train/loss": Metric(
        "Mean over the pairs of the optimizer step of",
        "the loss that was minimised",
        None,
        "null, or a sudden jump: the learning rate is too high",
    ),
    "train/grad_norm": Metric(
        "L2 norm of",
        "the gradient of all trained parameters before clipping",
        None,
        "far above trainer.max_grad_norm at most steps: only its direction counts there",
    ),
    "train/learning_rate": Metric("Size of", "the optimizer step's learning rate, after warm-up and schedule"),
    "train/epoch": Metric("Number of", "passes over the training pairs so far", "epochs"),
}

# State and scheduled parameters of the objective's parts, with the values that the step's loss used.
OBJECTIVE: dict[str, Metric] = {
    "train/objective/scheduled": Metric("Value of", "the parameter that objective.schedule moves"),
    "train/objective/kl_chosen": Metric(
        "Mean over the step's chosen answers of", "the unscaled reward, at least 0 (KTO's z)"
    ),
    "train/objective/kl_rejected": Metric(
        "Mean over the step's rejected answers of", "the unscaled reward, at least 0 (KTO's z)"
    ),
    "train/objective/shift": Metric(
        "Mean over all answers so far of", "the reward, by which BCO shifts it", "reward units"
    ),
    "train/objective/seen": Metric("Number of", "answers in train/objective/shift"),
    "train/objective/gap_mean": Metric(
        "Exponential mean over steps of", "the mean gap between chosen and rejected log-ratio"
    ),
    "train/objective/gap_spread": Metric("Exponential mean over steps of", "the gap's standard deviation over pairs"),
    "train/objective/population": Metric("Number of", "pairs among which gamma-PO shares the margin"),
    "train/objective/factor": Metric("Ratio of", "the step's beta to objective.beta"),
    "train/objective/threshold": Metric("Smallest of", "the sampling keys of pairs that are kept"),
    "train/objective/kept": Metric("Share (0 to 1) of pairs", "of the step that are kept"),
    "train/objective/step": Metric("Number of", "steps that the objective has seen"),
}

# Metrics by which a step can be called better than another one: what they measure, not how far training has gone. Of the
# others a user has to say so.
HIGHER_IS_BETTER = frozenset(
    ("glassbox/true_win_rate", "glassbox/true_reward", "rewards/accuracies", "ranking/accuracy",
     "ranking/accuracy_length_normalised", "ranking/against_start", "ranking/against_start_length_normalised",
     "displacement/chosen", "displacement/quadrant/up_down")
)  # fmt: skip
LOWER_IS_BETTER = frozenset(
    ("displacement/share_chosen_down", "displacement/quadrant/down_down", "displacement/quadrant/down_up", "kl/reference",
     "samples/repetition")
)  # fmt: skip

# Of the pairs of one source of a mixture, as `source/<name>/<key>`, and of one subset (data.subset_column).
BY_GROUP = {
    "source": ("displacement/chosen", "displacement/rejected", "displacement/share_chosen_down", "rewards/accuracies"),
    "subset": (
        "displacement/chosen", "rewards/accuracies", "ranking/accuracy", "ranking/accuracy_length_normalised",
        "ranking/against_start", "ranking/against_start_length_normalised",
    ),
}  # fmt: skip

# Keys of the rows of probe.jsonl and measured.jsonl, one a pair, that no mean is logged of.
PER_PAIR: dict[str, Metric] = {
    f"scores/{side}": Metric(
        "Value in each pair's row of probe.jsonl of", f"the {side} completion's score s, of which h(s) is the shape"
    )
    for side in ("chosen", "rejected")
}

CATALOG: dict[str, Metric] = {
    **PROBE,
    **GLASSBOX,
    **BOUNDS,
    **SAMPLES,
    **EVAL,
    **MEASURE,
    **FORETOLD,
    **TRAIN,
    **OBJECTIVE,
}

# Probe metrics that are also computed on the training batch, from the tensors of the loss, as `train/<key>`.
_ON_THE_BATCH = ("rewards/", "logps/", "ranking/accuracy", "gradient_weight/", "entropy/")


def explain(key: str) -> str:
    """One sentence for a metric: what it measures and its unit.

    Args:
        key: a key of metrics.jsonl, with its suffix (`_sum`, `/p10`, ...) or prefix (`train/`, `source/NAME/`, `subset/NAME/`), if any.

    Returns:
        The sentence.

    Raises:
        UsageError: no run writes the key; the message has the nearest one.
    """
    return lookup(key).sentence


def described(key: str) -> str:
    """All that the catalogue says of a metric: `explain`, in which direction it is better, and what a bad value is.

    Args:
        key: as for `explain`.

    Returns:
        Sentences, on one line.

    Raises:
        UsageError: no run writes the key; the message has the nearest one.
    """
    found = lookup(key)
    better = "More is better." if key in HIGHER_IS_BETTER else "Less is better." if key in LOWER_IS_BETTER else ""
    return " ".join(filter(None, (found.sentence, better, f"Bad: {found.bad}." if found.bad else "")))


def lookup(key: str) -> Metric:
    """The catalogue's entry for `key`, derived from the plain key's where it has a suffix or prefix.

    Args:
        key: as for `explain`.

    Returns:
        The entry.

    Raises:
        UsageError: no run writes the key; the message has the nearest one.
    """
    if key in CATALOG or key in PER_PAIR:
        return CATALOG[key] if key in CATALOG else PER_PAIR[key]
    metric = _derive(key)
    if metric is None:
        raise UsageError(
            f"no metric is called '{key}'{nearest(key, [*keys(), *PER_PAIR])}; 'alphapo metrics' lists them all"
        )
    return metric


def is_known(key: str) -> bool:
    """Whether a run can write the key."""
    return key in CATALOG or _derive(key) is not None


def keys() -> list[str]:
    """Every key that a run can write, in the catalogue's order, each with its derived keys; last `train/` keys."""
    plain = [key for key in CATALOG for key in (key, *_derived_keys(key))]
    batch = [f"train/{key}" for key in PROBE if key.startswith(_ON_THE_BATCH)]
    return plain + [derived for key in batch for derived in (key, *_derived_keys(key.removeprefix("train/"), "train/"))]


def _derived_keys(key: str, prefix: str = "") -> list[str]:
    metric = CATALOG[key]
    suffixes = (["_sum"] if metric.summed else []) + (list(_QUANTILES) if metric.quantiles else [])
    return [f"{prefix}{key}{suffix}" for suffix in suffixes]


def _derive(key: str) -> Metric | None:
    kind, _, named = key.partition("/")
    if kind in BY_GROUP:
        if kind == "subset" and named.endswith("/pairs"):
            return Metric("Number of", f"probe pairs of the subset '{named.removesuffix('/pairs')}'")
        rest = max((rest for rest in BY_GROUP[kind] if named.endswith(f"/{rest}")), key=len, default=None)
        if rest is None:
            return None
        whole, name = PROBE[rest], named.removesuffix(f"/{rest}")
        of = f"probe pairs {'from' if kind == 'source' else 'of the subset'} '{name}'"
        return Metric(whole.statistic.replace("probe pairs", of), whole.quantity, whole.unit, whole.bad)
    if key.startswith("train/"):
        rest = key.removeprefix("train/")
        base = _derive(rest) or PROBE.get(rest)
        if base is None or not rest.startswith(_ON_THE_BATCH):
            return None
        statistic = base.statistic.replace("probe pairs", "pairs of the training batch")
        return Metric(statistic, base.quantity, base.unit, base.bad)
    for suffix, name in _QUANTILES.items():
        base = CATALOG.get(key.removesuffix(suffix))
        if key.endswith(suffix) and base is not None and base.quantiles:
            return Metric(f"{name} over the probe pairs of", base.quantity, base.unit)
    base = CATALOG.get(key.removesuffix("_sum"))
    if key.endswith("_sum") and base is not None and base.summed:
        quantity = base.quantity.replace("divided by its number of tokens", "summed over its tokens")
        return Metric(base.statistic, quantity, "nats", base.bad, quantiles=False)
    return None
