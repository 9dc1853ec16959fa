"""From scored answers to pairs: thin, pair, select, order, augment. Pure: no files, no model, no torch.

Nothing depends on the order of the prompts: each is known by its hash, and so are ties and random choices.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from alphapo_cli.data.select import Condition, check, select, typed
from alphapo_cli.errors import UsageError, nearest
from alphapo_cli.pairs import augment, measures, numbers
from alphapo_cli.pairs.candidates import Answer, Candidates
from alphapo_cli.pairs.length_balance import balance
from alphapo_cli.pairs.numbers import OfStart
from alphapo_cli.pairs.order import SHUFFLE, ordered
from alphapo_cli.pairs.rules import Pair, check_count, pairs_of, parse
from alphapo_cli.pairs.schema import PairConfig, PairingConfig, ThinConfig
from alphapo_cli.pairs.thin import thin
from alphapo_cli.probe.score_names import NAMES as OF_START

BALANCE = "balance"
LARGEST_WEIGHT = 1e100  # times a length it is still a score


# Settings of thin and pair that mean something of given pairs.
_OF_GIVEN = {("pair", "chosen"), ("pair", "rejected"), ("pair", "rank_by"), ("pair", "length_unit")}


@dataclass(frozen=True)
class Built:
    """What came of the prompts.

    Attributes:
        made: rows of pairs.jsonl.
        pairs: the pairs behind them, in their order.
        lists: prompts with the answers that took part, for objectives that read lists.
        dropped: the prompts without a pair, with the reason; with those that have one they are all prompts.
        deselected: pairs that `select` left out, by condition.
        length_weight: what was taken off a score for each unit of length.
        left_out: answers that `thin` left out, by reason.
    """

    made: list[augment.Made]
    pairs: list[Pair]
    lists: list[Candidates]
    dropped: list[tuple[Candidates, str]]
    deselected: Mapping[str, int] = field(default_factory=dict)
    length_weight: float = 0.0
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[str, int]:
        """Prompts without a pair by reason, the commonest first."""
        return dict(Counter(reason for _, reason in self.dropped).most_common())


def check_settings(cfg: PairingConfig, columns: Sequence[str], row_columns: Sequence[str], answers: int) -> None:
    """Check all settings before any model loads.

    Args:
        cfg: the settings.
        columns: columns of scores that there will be.
        row_columns: the rows' own columns of numbers.
        answers: the most answers to a prompt.

    Raises:
        UsageError: a rule, a name or a number makes no sense.
    """
    rules = parse(cfg.pair)
    check_count(rules, cfg.pair, answers)
    given = rules[0].kind == "given"
    ranked_by(cfg.pair, columns, given)
    weight = cfg.pair.length_weight
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if weight != BALANCE and not (number and weight >= 0):
        raise UsageError(f"pair.length_weight={weight}: must be a number from 0, or {BALANCE}")
    if number and weight > LARGEST_WEIGHT:
        raise UsageError(f"pair.length_weight={weight}: must be at most {LARGEST_WEIGHT:g}")
    if given:
        _check_given(cfg)
    keep = cfg.thin.rejection_keep
    if (cfg.thin.rejection_beta is None) != (keep is None):
        raise UsageError("thin.rejection_beta and thin.rejection_keep go together; give both")
    for key, wanted in (("thin.rejection_keep", keep), ("thin.min_answers", cfg.thin.min_answers)):
        if wanted is not None and wanted > answers:
            raise UsageError(f"{key}={wanted}: there are only {answers} answers to a prompt; ask for more answers")
    augment.check(cfg.augment)
    known = numbers.names(columns, row_columns)
    measures.check(cfg.measures, known)
    every = [*known, *cfg.measures]
    check(conditions(cfg.select), every, "select")
    if cfg.order.by != SHUFFLE and cfg.order.by not in every:
        names = sorted([*every, SHUFFLE])
        raise UsageError(
            f"order.by={cfg.order.by}: no such number{nearest(cfg.order.by, names)} (there are: {', '.join(names)})"
        )


def _check_given(cfg: PairingConfig) -> None:
    """Refuse (UsageError) settings that choose answers, of which a given pair has none to choose from."""
    for part, settings, default in (("thin", cfg.thin, ThinConfig()), ("pair", cfg.pair, PairConfig())):
        for key, value in asdict(settings).items():
            if value != getattr(default, key) and (part, key) not in _OF_GIVEN:
                raise UsageError(
                    f"{part}.{key}={value}: has no effect on given pairs, which are taken as they are; leave it out, and "
                    "select by margin, chars_chosen, ..."
                )


def ranked_by(cfg: PairConfig, columns: Sequence[str], given: bool) -> str | None:
    """The column of scores that ranks answers.

    Args:
        cfg: `rank_by` names it; None: the only one, or the first where there are several.
        columns: the columns that there are.
        given: whether pairs are given, which need no scores.

    Returns:
        Its name, None for given pairs without scores.

    Raises:
        UsageError: there is no such column, or none at all.
    """
    if cfg.rank_by is not None and cfg.rank_by not in columns:
        raise UsageError(
            f"pair.rank_by={cfg.rank_by}: no such column of scores{nearest(cfg.rank_by, columns)} "
            f"(there are: {', '.join(columns) or 'none'})"
        )
    if cfg.rank_by is None and not columns and not given:
        raise UsageError("no scores to rank answers by: name a scorer (scorer=NAME), or give answers with scores")
    return cfg.rank_by or (columns[0] if columns else None)


def conditions(given: Any) -> list[Condition]:
    """The conditions of `select`; UsageError for an entry that is none."""
    names = tuple(Condition.__dataclass_fields__)
    found = []
    if isinstance(given, Mapping) and "by" in given and not isinstance(given["by"], Mapping):
        given = [given]
    if given is not None and not isinstance(given, Mapping | list | tuple):
        raise UsageError(
            f"select={given}: must be a list of conditions, such as [{{by: margin, keep: highest, share: 0.5}}]"
        )
    entries = list(given.values()) if isinstance(given, Mapping) else list(given or [])
    for entry in entries:
        if not isinstance(entry, Mapping) or "by" not in entry:
            raise UsageError(
                f"select: {entry!r} is no condition; write one as {{by: margin, keep: highest, share: 0.5}}"
            )
        extra = [key for key in entry if key not in names]
        if extra:
            raise UsageError(
                f"select.{extra[0]}: no such setting{nearest(str(extra[0]), names)} (settings: {', '.join(names)})"
            )
        found.append(typed(entry, "select"))
    return found


def needs_start(cfg: PairingConfig) -> list[str]:
    """The numbers under the start model that checked settings ask for."""
    asked = [*(one.by for one in conditions(cfg.select)), cfg.order.by]
    asked += [name for settings in cfg.measures.values() for name in measures.needed(settings)]
    return [name for name in dict.fromkeys(asked) if name in OF_START and name not in cfg.measures]


def build(
    prompts: Sequence[Candidates], cfg: PairingConfig, columns: Sequence[str], seed: int, start: OfStart | None = None
) -> Built:
    """Make pairs for checked settings.

    Args:
        prompts: each prompt once, with its scored answers.
        cfg: the settings.
        columns: columns of scores.
        seed: of everything random.
        start: gives the numbers under the start model; None where none of them `needs_start`.

    Returns:
        The pairs, and a reason for every prompt without one.
    """
    given = parse(cfg.pair)[0].kind == "given"
    column = ranked_by(cfg.pair, columns, given)

    def score(answer: Answer) -> float | None:
        return 0.0 if column is None else answer.scores.get(column)

    lists: list[Candidates] = []
    dropped: list[tuple[Candidates, str]] = []
    left_out: Counter[str] = Counter()
    for prompt in sorted(prompts, key=lambda prompt: prompt.key):
        if given:
            lists.append(prompt)
            continue
        answers, reason = thin(prompt, cfg.thin, score, seed, left_out)
        if reason is None:
            lists.append(replace(prompt, answers=answers))
        else:
            dropped.append((prompt, reason))
    weight, pairs, without = _paired(lists, cfg.pair, column, seed)
    pairs, deselected, unselected = _selected(pairs, cfg, columns, seed, start)
    dropped += without + unselected
    by = [cfg.order.by] if cfg.order.by != SHUFFLE else []
    pairs = ordered(pairs, cfg.order, _values(pairs, cfg, columns, by, start), seed)
    kept = {pair.candidates.key for pair in pairs}
    return Built(
        augment.augment(pairs, cfg.augment, seed),
        pairs,
        [one for one in lists if one.key in kept],
        sorted(dropped, key=lambda one: one[0].key),
        deselected,
        weight,
        {reason: count for reason, count in left_out.most_common() if count},
    )


def _paired(
    lists: Sequence[Candidates], cfg: PairConfig, column: str | None, seed: int
) -> tuple[float, list[Pair], list[tuple[Candidates, str]]]:
    """The weight of length, the pairs, and the prompts without one."""

    def attempt(weight: float) -> tuple[list[Pair], list[tuple[Candidates, str]]]:
        pairs: list[Pair] = []
        without: list[tuple[Candidates, str]] = []
        for prompt in lists:
            scored = [] if column is None else [a for a in prompt.answers if column in a.scores]
            scores = [a.scores[str(column)] - (weight * a.length(cfg.length_unit) if weight else 0.0) for a in scored]
            found, reason = pairs_of(prompt, scored, scores, cfg, seed)
            pairs += found
            if reason is not None:
                without.append((prompt, reason))
        return pairs, without

    def gap(weight: float) -> float:
        pairs = attempt(weight)[0]
        unit = cfg.length_unit
        return math.fsum(p.chosen.length(unit) - p.rejected.length(unit) for p in pairs) / max(len(pairs), 1)

    weight = balance(gap) if cfg.length_weight == BALANCE else float(cfg.length_weight)
    return weight, *attempt(weight)


def _values(
    pairs: Sequence[Pair], cfg: PairingConfig, columns: Sequence[str], wanted: Sequence[str], start: OfStart | None
) -> dict[str, list[float]]:
    """The numbers of pairs by name, measures included."""
    plain = [name for name in wanted if name not in cfg.measures]
    own = {name: cfg.measures[name] for name in wanted if name in cfg.measures}
    plain += [name for settings in own.values() for name in measures.needed(settings)]
    found = numbers.numbers(pairs, columns, list(dict.fromkeys(plain)), start)
    return {**found, **{name: measures.measure(pairs, settings, found) for name, settings in own.items()}}


def _selected(
    pairs: list[Pair], cfg: PairingConfig, columns: Sequence[str], seed: int, start: OfStart | None
) -> tuple[list[Pair], dict[str, int], list[tuple[Candidates, str]]]:
    """The pairs that every condition keeps, counts by condition, and the prompts that lost all of theirs."""
    wanted = conditions(cfg.select)
    if not wanted or not pairs:
        return pairs, {}, []
    names = [one.by for one in wanted]
    known = {*numbers.names(columns, numbers.row_columns([p.candidates for p in pairs])), *cfg.measures}
    values = _values(pairs, cfg, columns, [name for name in dict.fromkeys(names) if name in known], start)
    result = select(values, wanted, [pair.key for pair in pairs], seed=seed)
    left = {pairs[row].candidates.key for row in result.kept}
    lost: dict[str, tuple[Candidates, str]] = {}
    for one in result.dropped:  # in the order of the conditions: the last one that took a pair is the reason
        prompt = pairs[one.row].candidates
        if prompt.key not in left:
            lost[prompt.key] = (prompt, f"not selected: {wanted[one.condition].text}")
    return [pairs[row] for row in result.kept], result.counts(wanted), list(lost.values())
