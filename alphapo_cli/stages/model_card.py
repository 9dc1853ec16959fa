"""The card of an exported model: the hub's metadata, then what it is, how it was trained, and what was measured.

A card is published with the model, so it holds no path of the machine that trained it: of a path the last part stands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from alphapo_cli.config.embedded_world import WORLD
from alphapo_cli.errors import visible
from alphapo_cli.modeling.locations import HUB_NAME
from alphapo_cli.runs import identity
from alphapo_cli.runs.state import RunState
from alphapo_cli.runtime.wording import level, rate
from alphapo_cli.storage.jsonl import read_jsonl

_ROWS = 9  # readings in the table of the curve
_CURVE = (
    ("displacement/chosen", "chosen, nats per token"),
    ("displacement/rejected", "rejected, nats per token"),
    ("displacement/share_chosen_down", "chosen answers less likely"),
    ("rewards/margins", "reward margin"),
)


@dataclass(frozen=True)
class CardFacts:
    """What a card says. Without a run all but `base`, `adapter` and `licence` is empty.

    Attributes:
        base: the model that training started from, as the configuration names it.
        adapter: whether the weights are an adapter.
        licence: by the hub's names; None where nobody has said.
        settings: that differ from their defaults, by dotted key.
        data: the counts and hashes of summary.json.
        versions: of the packages.
        readings: rows of metrics.jsonl in which the probe was measured.
        verdict: the verdict of summary.json.
        weights: which step the weights are of and why, as a sentence, where it is not simply the last one of the plan.
        judged: metrics of the run's evaluation.
        judged_interval: of its win rate, and its confidence and what it is over in words; None where it was not recorded.
    """

    base: str | None
    adapter: bool
    licence: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    readings: Sequence[Mapping[str, Any]] = ()
    verdict: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    judged: Mapping[str, Any] = field(default_factory=dict)
    judged_interval: tuple[float, float, str] | None = None


def facts_of(run: RunState | None, base: str | None, adapter: bool, licence: str | None) -> CardFacts:
    """Read what a card says from a run directory.

    Args:
        run: the run; None for a model that is none's.
        base: the base model that the adapter's files name; None without an adapter.
        adapter: whether an adapter is exported.
        licence: as the user named it.

    Returns:
        The facts.
    """
    if run is None:
        return CardFacts(base, adapter, licence)
    stored = identity.stored_settings(run.config)
    settings = identity.chosen(stored)
    if stored.get("model.source") == WORLD:
        base = "the embedded world's base model"  # whose directory has a hash for a name
    summary = run.summary() or {}
    rows = read_jsonl(run.metrics) if run.metrics.is_file() else []
    outcome = run.outcome()
    ends = (outcome.get("intervals") or {}).get("eval/win_rate")
    return CardFacts(
        base=settings.get("model.path") or base,
        adapter=adapter,
        licence=licence,
        settings=settings,
        data=summary.get("data") or {},
        versions=run.read_manifest().get("versions") or {},
        readings=[row for row in rows if row.get("displacement/chosen") is not None],
        verdict=summary.get("verdict") or {},
        weights=_weights(summary),
        judged=outcome.get("metrics") or {},
        judged_interval=None if ends is None else (ends[0], ends[1], level([outcome])),
    )


def _weights(summary: Mapping[str, Any]) -> str:
    """Which step the weights are of, where they are not those of the last one or training ended early; else empty."""
    chosen, step = summary.get("best"), summary.get("step")
    said = []
    if isinstance(chosen, dict):
        said.append(
            f"The weights are those of step {chosen.get('step')} of {step}, the best by `{chosen.get('metric')}`."
        )
    if summary.get("state") == "stopped":
        said.append(f"Training was stopped at step {step}: {_bare(str(summary.get('reason')))}.")
    return " ".join(said)


def card(facts: CardFacts, name: str) -> str:
    """The card.

    Args:
        facts: what it says.
        name: what the model is called.

    Returns:
        Markdown with the hub's YAML at its head.
    """
    head = yaml.safe_dump(_metadata(facts, name), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{head}---\n", f"# {name}", _what(facts), *_recipe(facts), *_data(facts), *_curve(facts)]
    return "\n\n".join([*parts, *_outcome(facts), _limits(facts)]).replace("---\n\n\n", "---\n\n") + "\n"


def _metadata(facts: CardFacts, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if facts.licence is not None:
        found["license"] = facts.licence
    found |= {"library_name": "peft" if facts.adapter else "transformers", "pipeline_tag": "text-generation"}
    if facts.base is not None and _is_hub_name(facts.base):
        found |= {"base_model": facts.base, "base_model_relation": "adapter" if facts.adapter else "finetune"}
    data = facts.settings.get("data.name")
    if isinstance(data, str) and data.count("/") == 1:
        found["datasets"] = [data]
    objective = facts.settings.get("objective.name", "alphapo" if facts.settings else None)
    found["tags"] = [
        "alphapo",
        "preference-optimization",
        *([str(objective)] if objective not in (None, "alphapo") else []),
    ]
    win, n = facts.judged.get("eval/win_rate"), facts.judged.get("eval/n_total")
    kind = "win_rate"
    if win is None and facts.verdict.get("win_rate") is not None:
        win, n, kind = facts.verdict["win_rate"], facts.verdict.get("n"), "true_win_rate"
    if win is not None:
        data_name = str(facts.data.get("source", "prompts"))
        found["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "text-generation", "name": "Text Generation"},
                        "dataset": {"name": _bare(data_name), "type": _bare(data_name).replace(" ", "-")},
                        "metrics": [
                            {"type": kind, "value": round(float(win), 6), "name": f"{kind.replace('_', ' ')}, n = {n:.0f}"}
                        ],
                    }
                ],
            }
        ]  # fmt: skip
    return found


def _is_hub_name(text: str) -> bool:
    return bool(HUB_NAME.fullmatch(text)) and not _exists(text)


def _what(facts: CardFacts) -> str:
    if not facts.settings and not facts.data:
        kind = "A LoRA adapter" if facts.adapter else "A causal language model"
        return f"{kind}{' of ' + _bare(facts.base) if facts.base else ''}, exported by alphapo. No training run came with it."
    kind = "A LoRA adapter" if facts.adapter else "A causal language model"
    objective = facts.settings.get("objective.name", "alphapo")
    start = f", starting from {_bare(facts.base)}" if facts.base else ""
    return f"{kind}, trained on preference pairs with the objective `{_bare(str(objective))}`{start}, by alphapo. {facts.weights}".rstrip()


def _recipe(facts: CardFacts) -> list[str]:
    if not facts.settings and not facts.data:
        return []
    lines = [f"- `{key}`: `{_shown(value)}`" for key, value in sorted(facts.settings.items())]
    lines = lines or ["- every setting at its default"]
    known = [
        f"{key} {facts.versions[key]}" for key in ("alphapo", "torch", "transformers", "peft") if key in facts.versions
    ]
    return [
        "## Recipe\n\nSettings that differ from alphapo's defaults:\n\n" + "\n".join(lines),
        f"Made with {', '.join(known)}.",
    ]


def _data(facts: CardFacts) -> list[str]:
    if not facts.data:
        return []
    data = facts.data
    rows = [
        f"- source: {_bare(str(data.get('source', 'unknown')))}",
        f"- training pairs: {data.get('train_pairs', 0):,} of {data.get('pairs_read', 0):,} rows; held out for the probe: "
        f"{data.get('probe_pairs', 0):,}",
        f"- SHA-256 of all token ids: `{data.get('key', 'unknown')}`",
        f"- SHA-256 of the tokenizer: `{data.get('tokenizer', 'unknown')}`",
        f"- truncated pairs: {data.get('truncated_pairs', 0):,}; chosen minus rejected: "
        f"{data.get('mean_chosen_minus_rejected_tokens') or 0.0:+.1f} tokens on average",
    ]
    return ["## Data\n\n" + "\n".join(rows)]


def _curve(facts: CardFacts) -> list[str]:
    if not facts.readings:
        return []
    count = len(facts.readings)
    picked = (
        sorted({round(n * (count - 1) / max(_ROWS - 1, 1)) for n in range(_ROWS)}) if count > _ROWS else range(count)
    )
    head = "| step | " + " | ".join(label for _, label in _CURVE) + " |\n" + "| --- " * (len(_CURVE) + 1) + "|\n"
    pairs = facts.data.get("probe_pairs")
    rows = []
    for n in picked:
        row = facts.readings[n]
        cells = [
            "" if row.get(key) is None else f"{100 * row[key]:.0f} %" if "share" in key else f"{row[key]:+.3f}"
            for key, _ in _CURVE
        ]
        rows.append(f"| {row['step']} | " + " | ".join(cells) + " |")
    note = f"Change of log-probabilities since the first step, on {pairs:,} held-out pairs." if pairs else ""
    return ["## Displacement\n\n" + note + "\n\n" + head + "\n".join(rows)]


def _outcome(facts: CardFacts) -> list[str]:
    if not facts.settings and not facts.data:
        return []
    lines = [f"- {sentence}" for sentence in facts.verdict.get("sentences", ())]
    judged = facts.judged.get("eval/win_rate")
    if judged is not None:
        ends = None if facts.judged_interval is None else facts.judged_interval[:2]
        words = rate(judged, facts.judged.get("eval/n_total"), ends)
        lines.insert(0, f"- win rate {words}, as judged by `alphapo run`")
    return ["## Outcome\n\n" + ("\n".join(lines) or "- not measured")]


def _limits(facts: CardFacts) -> str:
    lines = [
        f"- Intervals are {_levels(facts)}: they do not allow for another seed of the training.",
        "- Log-probabilities and margins of preference pairs are no measure of quality.",
        "- Nothing was measured here about safety, facts, other languages or other prompts than those named above.",
    ]
    if facts.licence is None:
        lines.append("- No licence has been chosen; that of the base model and of the data may bind this model, too.")
    return "## Limits\n\n" + "\n".join(lines)


def _levels(facts: CardFacts) -> str:
    """Confidence of the card's intervals and what they are over; the win rate by the judge may have one of its own."""
    own = "95 %, over prompts or pairs"
    if facts.judged_interval is None:
        return own
    return f"{own}, that of the win rate by the judge {facts.judged_interval[2]}"


def _bare(text: str | None) -> str:
    """A name on one line; of a path on this machine its last part."""
    if not text:
        return ""
    is_path = text.startswith(("/", ".", "~")) or _exists(text)
    return visible(Path(text).name if is_path else text)


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a name, or with a zero byte
        return False


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return _bare(value)
    if isinstance(value, list):
        return json.dumps([_bare(item) if isinstance(item, str) else item for item in value])
    return json.dumps(value)
