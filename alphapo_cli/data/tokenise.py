"""Tokenise pairs so that training conditions on the same prompt ids as generation.

Both sides share the prompt's ids, which are those of generation. A completion is tokenised together with its prompt and
split off after it; where a token crosses the boundary, only its part after the boundary is re-tokenised. Tokenising
prompt and completion separately would change the completion's first token for every tokenizer that treats the beginning
of a text specially.

Every sequence holds one BOS, if the tokenizer or its template uses one, and every completion that was not cut ends
with one end token.

`data.completion_includes_header` moves the boundary: the completion begins with what the template writes before an
answer, and generation is fed the prompt and that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm import tqdm

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.answer_frame import OTHER_HEADER, Header, closed, header_of, special_inside, special_of_template
from alphapo_cli.data.parallel import automatic, in_order
from alphapo_cli.data.prompt_boundary import Split, encodings_of, ids_of, split, turns_of
from alphapo_cli.data.rendering import Rendered, TemplateLoss, render_pair
from alphapo_cli.data.spelled_tokens import check_pairs
from alphapo_cli.data.tally import Tally
from alphapo_cli.data.template import Style, render_prompt, style_of
from alphapo_cli.data.template_errors import TemplateRefusal
from alphapo_cli.data.template_loss import check_losses, idle_arguments, nothing_left
from alphapo_cli.data.text_pairs import NO_CONTEXT, PromptContext, Side, TextPair
from alphapo_cli.data.token_pairs import Ragged
from alphapo_cli.data.truncation import Ids, TokenCounts, cut_left, truncate
from alphapo_cli.data.vocabulary_check import check_known, round_trip_loss, unknown_id
from alphapo_cli.errors import UsageError

_CHUNK = 512  # pairs per call of the tokenizer


@dataclass(frozen=True)
class Encoded:
    """n pairs as ids, `others` their sides 2, 3, ...; an absent side has no tokens.

    `kept` [n]: their positions among the input pairs. `template`: chat or plain. `turns`: with `data.trajectories`, for
    every side the index of the assistant turn of each token, -1 for none.

    `left_out`: pairs that are not in because of the chat template, by reason; `cut`: pairs that are in without what it
    leaves out of an answer; `unused`: pairs by what else it leaves out. All have positions among the input pairs.
    """

    prompt: Ragged
    chosen: Ragged
    rejected: Ragged
    kept: tuple[int, ...]
    counts: TokenCounts
    template: str
    others: tuple[Ragged, ...] = ()
    turns: tuple[Ragged, ...] = ()
    left_out: Tally = field(default_factory=Tally)
    cut: Tally = field(default_factory=Tally)
    unused: Tally = field(default_factory=Tally)


def encode_prompt(
    prompt: Side, tokenizer: Any, cfg: DataConfig, context: PromptContext = NO_CONTEXT, *, continued: bool = False
) -> list[int]:
    """Tokenise a prompt for generation; training conditions on the same ids.

    With `data.completion_includes_header` the last of them are the header, with which the completions of training begin.

    Args:
        prompt: text (one user message under a chat template) or messages.
        tokenizer: a fast transformers tokenizer.
        cfg: template settings; `max_prompt_length` truncates from the left, keeping a leading BOS.
        context: what the row gives the chat template beside its messages.
        continued: whether the last message is the beginning of the answer, which then begins with no header.

    Returns:
        The ids, with at most one BOS.

    Raises:
        UsageError: messages without a chat template, a tokenizer that `style_of` refuses, or a header that `header_of`
            refuses.
    """
    style, header = style_of(tokenizer, cfg), Header() if continued else header_of(tokenizer, cfg)
    text = render_prompt(prompt, tokenizer, cfg, style, context, continued=continued)
    if not text.endswith(header.text):
        raise UsageError(f"data.completion_includes_header: {OTHER_HEADER}; leave it out")
    bare = ids_of(tokenizer, [text.removesuffix(header.text)])[0]
    whole, lead = _with_prefix(bare, style, tokenizer)
    return [*cut_left(whole, cfg.max_prompt_length, lead), *header.ids]


def end_token_id(tokenizer: Any, cfg: DataConfig) -> int:
    """The id that ends every completion, at which generation must stop; not always the tokenizer's EOS."""
    return style_of(tokenizer, cfg).end_id


def encode_pairs(pairs: Sequence[TextPair], tokenizer: Any, cfg: DataConfig) -> Encoded:
    """Tokenise pairs and truncate them to `data.max_length`, in `data.workers` processes.

    Args:
        pairs: pairs with equally many sides.
        tokenizer: a fast transformers tokenizer.
        cfg: the data settings.

    Returns:
        The pairs that remain, with counts.

    Raises:
        UsageError: messages without a chat template, a template that leaves out a part of an answer and
            `data.on_template_loss=refuse`, special tokens in a text and `data.special_tokens_in_text=refuse`, no remaining pair, or a share of unknown tokens above `data.max_unknown`.
    """
    style = style_of(tokenizer, cfg)
    check_pairs(pairs, tokenizer, cfg)
    counts, left_out, cut, unused = TokenCounts(), Tally(), Tally(), Tally()
    parts: list[_Part] = []
    with tqdm(total=len(pairs), desc="tokenising", unit="pair", disable=None, leave=False, delay=2) as bar:
        for part in in_order(_encode_part, (tokenizer, cfg, style), _chunks(pairs), _workers(pairs, cfg)):
            parts.append(part)
            counts += part.counts
            left_out.update(part.left_out)
            cut.update(part.cut)
            unused.update(part.unused)
            bar.update(min(_CHUNK, len(pairs) - bar.n))
    kept = tuple(position for part in parts for position in part.kept)
    check_losses(left_out, pairs, tokenizer, cfg, style)
    if not kept:
        raise UsageError(f"no pair is left to train on: {nothing_left(left_out, counts, pairs, tokenizer, cfg, style)}")
    sample = [pairs[kept[i * len(kept) // min(64, len(kept))]] for i in range(min(64, len(kept)))]
    loss = (0.0, "") if counts.unknown else round_trip_loss(sample, tokenizer, cfg, style)
    for name in idle_arguments(sample, tokenizer, cfg, style):
        unused.add(name, kept[0], len(kept))
    check_known(counts.unknown, counts.tokens, loss, [pairs[position] for position in kept], tokenizer, cfg, style)
    prompt, *columns = (Ragged.joined(column) for column in zip(*(p.columns for p in parts), strict=True))
    sides = len(pairs[0].sides)
    chosen, rejected, *others = columns[:sides]
    return Encoded(
        prompt, chosen, rejected, kept, counts, style.name, tuple(others), tuple(columns[sides:]), left_out, cut, unused
    )


Chunk = tuple[int, Sequence[TextPair]]  # position of the first pair, and the pairs


def _chunks(pairs: Sequence[TextPair]) -> list[Chunk]:
    return [(start, pairs[start : start + _CHUNK]) for start in range(0, len(pairs), _CHUNK)]


def _workers(pairs: Sequence[TextPair], cfg: DataConfig) -> int:
    if cfg.workers is not None:
        return cfg.workers
    # The cost of tokenising grows with the characters, estimated from about 100 pairs.
    sample = pairs[:: max(1, len(pairs) // 100)]
    return automatic(sum(_characters(pair) for pair in sample) * len(pairs) // max(1, len(sample)))


def _characters(pair: TextPair) -> int:
    return sum(len(s) if isinstance(s, str) else sum(len(m["content"]) for m in s) for s in (pair.prompt, *pair.sides))


@dataclass(frozen=True)
class _Part:
    """A chunk's pairs as ids: prompts, every side, then the turns of every side.

    `kept`: positions among all pairs; the rest as in `Encoded`.
    """

    columns: tuple[Ragged, ...]
    kept: tuple[int, ...]
    counts: TokenCounts
    left_out: Tally
    cut: Tally
    unused: Tally


def _encode_part(shared: tuple[Any, DataConfig, Style], chunk: Chunk) -> _Part:
    tokenizer, cfg, style = shared
    counts, left_out, cut, unused = TokenCounts(), Tally(), Tally(), Tally()
    rendered: dict[int, Rendered] = {}
    for position, pair in enumerate(chunk[1], chunk[0]):
        try:
            texts = render_pair(pair, tokenizer, cfg, style)
        except TemplateRefusal as error:
            left_out.add(error.reason, position)
            counts += TokenCounts(refused=1)
            continue
        except TemplateLoss as error:
            left_out.add(error.cause, position)
            counts += TokenCounts(lost=1)
            continue
        if texts is None:
            counts += TokenCounts(emptied=1)
            continue
        if texts.lost is not None and cfg.on_template_loss != "keep":
            left_out.add(texts.lost, position)
            counts += TokenCounts(lost=1)
            continue
        if texts.lost is not None:
            cut.add(texts.lost, position)
            counts += TokenCounts(lost_kept=1)
        for name in texts.unused:
            unused.add(name, position)
        rendered[position] = texts
    kept: list[int] = []
    sides = len(chunk[1][0].sides)
    columns: list[list[list[int]]] = [[] for _ in range(1 + (2 if cfg.trajectories else 1) * sides)]
    for position, row, of_pair in _encode_chunk(rendered, tokenizer, cfg, style):
        counts += of_pair
        if row is not None:
            kept.append(position)
            for column, ids in zip(columns, row, strict=True):
                column.append(ids)
    return _Part(tuple(Ragged.from_lists(column) for column in columns), tuple(kept), counts, left_out, cut, unused)


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
    written = special_of_template(special, tokenizer, cfg, style)
    rows: list[tuple[int, Ids | None, TokenCounts]] = []
    for n, (position, text) in enumerate(rendered.items()):
        prompt, lead = _with_prefix(prompts[n], style, tokenizer)
        wholes = [None if answer is None else next(encodings) for answer in text.completions]
        if not prompt:
            # Without a BOS and a prompt nothing predicts the first token of a completion.
            rows.append((position, None, TokenCounts(emptied=1)))
            continue
        splits = [
            Split([]) if answer is None else split(prompts[n], text.prompt, answer, whole, tokenizer)
            for answer, whole in zip(text.completions, wholes, strict=True)
        ]
        answers = [
            [] if whole is None else closed(one.ids, ends, style)
            for one, whole, ends in zip(splits, wholes, text.ends, strict=True)
        ]
        (prompt, *cut_answers), cut = truncate(prompt, answers, lead, cfg)
        if len({tuple(ids) for ids in cut_answers}) < len(cut_answers):
            rows.append((position, None, TokenCounts(identical=1)))
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
            special_inside=int(any(special_inside(ids, special) > written for ids in answers)),
            tokens=sum(map(len, row)),
            unknown=0 if unknown is None else sum(ids.count(unknown) for ids in row),
        )
        rows.append((position, [*row, *turns], counts))
    return rows


def _with_end(turns: list[int]) -> list[int]:
    """Append the turn of the end token, which belongs to the last turn."""
    return [*turns, max(turns, default=0)]


def _with_prefix(ids: list[int], style: Style, tokenizer: Any) -> tuple[list[int], int]:
    """Ids that begin with the tokenizer's prefix once, and how many of them truncation from the left keeps."""
    lead = len(style.prefix)
    if lead and tuple(ids[:lead]) != style.prefix:
        return [*style.prefix, *ids], lead
    return ids, lead or int(bool(ids) and ids[0] == tokenizer.bos_token_id)
