"""From pairs to token ids, so that training sees what generation sees.

The prompt's ids are those that generation is fed, the same for both sides. A completion is tokenised within the whole
text and split off behind the prompt; where one token reaches over the boundary, only its part behind the boundary is
tokenised anew. The alternative, tokenising prompt and completion apart, changes the completion's first token for every
tokenizer that treats the beginning of a text specially.

Every sequence holds one BOS, if the tokenizer or its template uses one, and every completion that was not cut ends
with one end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tqdm import tqdm

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.parallel import automatic, in_order
from alphapo_cli.data.prompt_boundary import Split, encodings_of, ids_of, split, turns_of
from alphapo_cli.data.template import Rendered, Style, TemplateRefusal, render_pair, render_prompt, style_of
from alphapo_cli.data.text_pairs import Side, TextPair
from alphapo_cli.data.token_pairs import Ragged
from alphapo_cli.data.vocabulary_check import check_known, round_trip_loss, unknown_id
from alphapo_cli.errors import UsageError

_CHUNK = 512  # pairs that are tokenised in one call


@dataclass(frozen=True)
class TokenCounts:
    """What happened to the pairs; `tokens` and `unknown` count ids, the others pairs unless they say completions.

    `refused`: left out because the template takes no such conversation. `emptied`, `identical`: left out because
    nothing, or nothing different, remained. `boundary`: a token reached from the prompt into a completion and was
    split; `inexact`: of these, the text of prompt and completion is then not the original one. `special_inside`: an
    answer spells a special token out.
    """

    refused: int = 0
    emptied: int = 0
    identical: int = 0
    boundary: int = 0
    inexact: int = 0
    truncated_prompts: int = 0
    truncated_completions: int = 0
    truncated_pairs: int = 0
    special_inside: int = 0
    tokens: int = 0
    unknown: int = 0

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Encoded:
    """n pairs as ids, `others` their sides 2, 3, ...; an absent side has no tokens.

    `kept` [n]: their places among the pairs that were given. `template`: chat or plain. `turns`: with
    `data.trajectories`, for every side which of the assistant's turns each id belongs to, -1 for none.
    """

    prompt: Ragged
    chosen: Ragged
    rejected: Ragged
    kept: tuple[int, ...]
    counts: TokenCounts
    template: str
    others: tuple[Ragged, ...] = ()
    turns: tuple[Ragged, ...] = ()


def encode_prompt(prompt: Side, tokenizer: Any, cfg: DataConfig) -> list[int]:
    """The ids that generation is fed for a prompt, and that training conditions on.

    `prompt` is text (one user message under a chat template) or messages. Cut from the left to
    `data.max_prompt_length`, keeping a leading BOS. Raises UsageError for messages without chat template.
    """
    style = style_of(tokenizer, cfg)
    bare = ids_of(tokenizer, [render_prompt(prompt, tokenizer, cfg, style)])[0]
    whole, lead = _with_prefix(bare, style, tokenizer)
    return _cut_left(whole, cfg.max_prompt_length, lead)


def end_token_id(tokenizer: Any, cfg: DataConfig) -> int:
    """The id that closes every completion; generation must stop at it (it is not always the tokenizer's EOS)."""
    return style_of(tokenizer, cfg).end_id


def encode_pairs(pairs: Sequence[TextPair], tokenizer: Any, cfg: DataConfig) -> Encoded:
    """Tokenises pairs and cuts them to `data.max_length`, in `data.workers` processes.

    Raises UsageError for message data without chat template, for a template in which the answer cannot be found, when
    no pair remains, and when more than `data.max_unknown` of the tokens are unknown to the tokenizer.
    """
    style = style_of(tokenizer, cfg)
    counts, refusal = TokenCounts(), None
    parts: list[_Part] = []
    with tqdm(total=len(pairs), desc="tokenising", unit="pair", disable=None, leave=False, delay=2) as bar:
        for part in in_order(_encode_part, (tokenizer, cfg, style), _chunks(pairs), _workers(pairs, cfg)):
            parts.append(part)
            counts += part.counts
            refusal = refusal or part.refusal
            bar.update(min(_CHUNK, len(pairs) - bar.n))
    kept = tuple(place for part in parts for place in part.kept)
    if not kept:
        reason = str(refusal) if refusal else f"{counts.emptied} empty, {counts.identical} identical after tokenisation"
        raise UsageError(f"no pair is left to train on: {reason}")
    sample = [pairs[kept[i * len(kept) // min(64, len(kept))]] for i in range(min(64, len(kept)))]
    loss = (0.0, "") if counts.unknown else round_trip_loss(sample, tokenizer, cfg, style)
    check_known(counts.unknown, counts.tokens, loss, [pairs[place] for place in kept], tokenizer, cfg, style)
    prompt, *columns = (Ragged.joined(column) for column in zip(*(p.columns for p in parts), strict=True))
    sides = len(pairs[0].sides)
    chosen, rejected, *others = columns[:sides]
    return Encoded(prompt, chosen, rejected, kept, counts, style.name, tuple(others), tuple(columns[sides:]))


Chunk = tuple[int, Sequence[TextPair]]  # the first pair's place, and the pairs


def _chunks(pairs: Sequence[TextPair]) -> list[Chunk]:
    return [(start, pairs[start : start + _CHUNK]) for start in range(0, len(pairs), _CHUNK)]


def _workers(pairs: Sequence[TextPair], cfg: DataConfig) -> int:
    if cfg.workers is not None:
        return cfg.workers
    # Lengths of a few pairs stand for all; what tokenising costs goes by them.
    some = pairs[:: max(1, len(pairs) // 100)]
    return automatic(sum(_characters(pair) for pair in some) * len(pairs) // max(1, len(some)))


def _characters(pair: TextPair) -> int:
    return sum(len(s) if isinstance(s, str) else sum(len(m["content"]) for m in s) for s in (pair.prompt, *pair.sides))


@dataclass(frozen=True)
class _Part:
    """A chunk's pairs as ids, prompt and then every side (and then their turns). `kept`: their places among all pairs; `refusal`: the first
    one of a template."""

    columns: tuple[Ragged, ...]
    kept: tuple[int, ...]
    counts: TokenCounts
    refusal: TemplateRefusal | None


def _encode_part(shared: tuple[Any, DataConfig, Style], chunk: Chunk) -> _Part:
    tokenizer, cfg, style = shared
    counts, refusal = TokenCounts(), None
    rendered: dict[int, Rendered] = {}
    for place, pair in enumerate(chunk[1], chunk[0]):
        try:
            texts = render_pair(pair, tokenizer, cfg, style)
        except TemplateRefusal as error:
            refusal = refusal or error
            counts += TokenCounts(refused=1)
            continue
        if texts is None:
            counts += TokenCounts(emptied=1)
        else:
            rendered[place] = texts
    kept: list[int] = []
    sides = len(chunk[1][0].sides)
    columns: list[list[list[int]]] = [[] for _ in range(1 + (2 if cfg.trajectories else 1) * sides)]
    for place, row, of_pair in _encode_chunk(rendered, tokenizer, cfg, style):
        counts += of_pair
        if row is not None:
            kept.append(place)
            for column, ids in zip(columns, row, strict=True):
                column.append(ids)
    return _Part(tuple(Ragged.from_lists(column) for column in columns), tuple(kept), counts, refusal)


Ids = list[list[int]]  # a prompt's, then those of every side; with data.trajectories, then the turns of every side


def _encode_chunk(
    rendered: dict[int, Rendered], tokenizer: Any, cfg: DataConfig, style: Style
) -> list[tuple[int, Ids | None, TokenCounts]]:
    if not rendered:
        return []
    texts = list(rendered.values())
    prompts = ids_of(tokenizer, [text.prompt for text in texts])
    encodings = iter(encodings_of(tokenizer, [text.prompt + answer for text in texts for answer in text.present]))
    unknown = unknown_id(tokenizer, style)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    out: list[tuple[int, Ids | None, TokenCounts]] = []
    for n, (place, text) in enumerate(rendered.items()):
        prompt, lead = _with_prefix(prompts[n], style, tokenizer)
        wholes = [None if answer is None else next(encodings) for answer in text.completions]
        if not prompt:
            # Without a BOS an empty prompt leaves the first token of a completion without a context to predict it from.
            out.append((place, None, TokenCounts(emptied=1)))
            continue
        splits = [
            Split([]) if answer is None else split(prompts[n], text.prompt, answer, whole, tokenizer)
            for answer, whole in zip(text.completions, wholes, strict=True)
        ]
        answers = [
            one.ids if whole is None or ends else [*one.ids, style.end_id]
            for one, whole, ends in zip(splits, wholes, text.ends, strict=True)
        ]
        (prompt, *cut_answers), cut = truncate(prompt, answers, lead, cfg)
        if len({tuple(ids) for ids in cut_answers}) < len(cut_answers):
            out.append((place, None, TokenCounts(identical=1)))
            continue
        row = [prompt, *cut_answers]
        turns = [
            [] if whole is None else _with_end(turns_of(one.ids, whole, text.prompt, spans))[: len(kept)]
            for one, whole, spans, kept in zip(splits, wholes, text.turns, cut_answers, strict=False)
        ]
        counts = replace(
            cut,
            boundary=int(any(one.straddled for one in splits)),
            inexact=int(not all(one.exact for one in splits)),
            special_inside=int(any(not special.isdisjoint(ids[:-1]) for ids in answers)),
            tokens=sum(map(len, row)),
            unknown=0 if unknown is None else sum(ids.count(unknown) for ids in row),
        )
        out.append((place, [*row, *turns], counts))
    return out


def _with_end(turns: list[int]) -> list[int]:
    """And the end token's, which closes the last turn."""
    return [*turns, max(turns, default=0)]


def truncate(prompt: list[int], answers: list[list[int]], lead: int, cfg: DataConfig) -> tuple[Ids, TokenCounts]:
    """Cuts a prompt and its answers to `max_prompt_length` and `max_length`.

    The prompt loses its beginning (but not its `lead` first ids), down to half of max_length; then completions lose
    their end, end token included, since a model must not learn to stop where the data was cut. A completion keeps at
    least one token.
    """
    kept = _cut_left(prompt, cfg.max_prompt_length, lead)
    longest = max(map(len, answers))
    if len(kept) + longest > cfg.max_length:
        kept = _cut_left(kept, max(cfg.max_length - longest, min(len(kept), cfg.max_length // 2)), lead)
    room = cfg.max_length - len(kept)
    prompts = int(len(kept) < len(prompt))
    completions = sum(len(ids) > room for ids in answers)
    counts = TokenCounts(
        truncated_prompts=prompts, truncated_completions=completions, truncated_pairs=int(prompts + completions > 0)
    )
    return [kept, *(ids[:room] for ids in answers)], counts


def _cut_left(ids: list[int], length: int | None, lead: int) -> list[int]:
    if length is None or len(ids) <= length:
        return ids
    lead = min(lead, length)
    return ids[:lead] + ids[len(ids) - (length - lead) :]


def _with_prefix(ids: list[int], style: Style, tokenizer: Any) -> tuple[list[int], int]:
    """Ids with the tokenizer's own prefix, once; and how many of them stay when the prompt is cut from the left."""
    lead = len(style.prefix)
    if lead and tuple(ids[:lead]) != style.prefix:
        return [*style.prefix, *ids], lead
    return ids, lead or int(bool(ids) and ids[0] == tokenizer.bos_token_id)
