"""`alphapo pairs`: sample answers or read them, score them, and make pairs. Each part is done once.

`prepare` loads and checks all inputs and writes nothing; `run` samples, scores, pairs and writes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import DataConfig, RunConfig
from alphapo_cli.data.glassbox import world
from alphapo_cli.errors import AlphapoError, UsageError
from alphapo_cli.generation.prompt import Prompt, Prompts
from alphapo_cli.generation.schema import GenerateConfig, SubjectConfig
from alphapo_cli.generation.target_model import find
from alphapo_cli.pairs import numbers, read, rows
from alphapo_cli.pairs.augment import check_prompts
from alphapo_cli.pairs.build import Built, build, check_settings, needs_start
from alphapo_cli.pairs.candidates import Candidates
from alphapo_cli.pairs.schema import PairingConfig
from alphapo_cli.pairs.scoring.registry import column_of
from alphapo_cli.pairs.scoring.schema import PairsConfig, ScorerConfig
from alphapo_cli.pairs.scoring.scorer import Scorer
from alphapo_cli.pairs.scoring.start_scores import StartScores
from alphapo_cli.pairs.thin import check_lengths
from alphapo_cli.runs.provenance import manifest
from alphapo_cli.stages import generate
from alphapo_cli.stages.directories.pairs import PairsDirectory
from alphapo_cli.stages.scored_answers import make_scorers, score_all, scorer_configs
from alphapo_cli.storage.hashing import digest
from alphapo_cli.storage.paths import cache_dir

GLASSBOX_PROMPTS = 512  # where data.limit names no number


class NoPairsError(AlphapoError):
    """No pair is left; `metrics` are the figures of summary.json, which is not written."""

    def __init__(self, message: str, metrics: dict[str, Any]) -> None:
        super().__init__(message)
        self.metrics = metrics


@dataclass(frozen=True)
class Pairing:
    """The validated inputs.

    Attributes:
        cfg: the configuration.
        generation: the sampling of the model; None where all answers are read.
        read: prompts with the answers that were read.
        scorers: what scores the answers.
        columns: every column of scores that there will be.
        start: scores pairs under the start model; None where no setting names such a score.
        directory: where the pairs go.
        identity: what they depend on.
        state: of the directory, pending or complete.
        notes: about inputs that the user may not have intended.
    """

    cfg: PairsConfig
    generation: generate.Generation | None
    read: list[Candidates]
    scorers: list[Scorer]
    columns: list[str]
    start: StartScores | None
    directory: PairsDirectory
    identity: dict[str, Any]
    state: str
    notes: list[str]


def prepare(
    cfg: PairsConfig,
    model: str | None,
    answers: Sequence[Path] = (),
    out: Path | None = None,
    *,
    sample: bool = True,
    typed: Collection[str] = (),
    replace: bool = False,
    cache: Path | None = None,
) -> Pairing:
    """Read the answers that exist, find model and scorers, and check all settings.

    Args:
        cfg: the configuration.
        model: the model to sample; None: the embedded world's base model.
        answers: directories and files of answers.
        out: the directory of the pairs; None: one named by its content in run.dir.
        sample: whether a model is sampled.
        typed: keys and groups that the command line names; what a recipe says of scorer and length of answers gives way to
            scores that exist, and to the embedded world.
        replace: whether to discard the content of the directory.
        cache: the cache directory; None for the usual one.

    Returns:
        The inputs; its `state` is "complete" where nothing is left to do.

    Raises:
        UsageError: an input, a setting or the directory cannot be used.
    """
    cache = cache or cache_dir()
    _check_sampling(cfg, answers, sample)
    found = read.read(answers) if answers else []
    cfg, said = _as_meant(cfg, typed, bool(read.columns_of(found)), sample and _of_world(cfg.data))
    said += [] if sample else _without_effect(typed)
    configs = scorer_configs(None if cfg.scorer.name == "auto" else cfg.scorer, cfg.scorers)
    known = list(dict.fromkeys([*map(column_of, configs), *read.columns_of(found)]))
    if sample and not configs and not known:
        raise UsageError("which scorer? type scorer=reward_model scorer.model=..., or another of scorer=... (--help)")
    most = max([cfg.generation.samples if sample else 0, *(len(prompt.answers) for prompt in found)])
    if len(known) > 1 and not configs and cfg.pair.rank_by is None and cfg.pair.chosen != "given":
        raise UsageError(f"by which scores? the answers have {', '.join(known)}; type pair.rank_by={known[0]}")
    check_settings(cfg, known, numbers.row_columns(found), most + (cfg.generation.samples if sample and found else 0))
    generation = _generation(cfg, model, cache) if sample else None
    asked = [_asked(prompt) for prompt in generation.prompts.rows] if generation is not None else []
    check_lengths(found, cfg.thin, cfg.pair)
    check_prompts([*found, *asked], cfg.augment)
    scorers = make_scorers(configs, cfg.judge, cfg.data, cache, [*found, *asked])
    start = _start(cfg, generation, cache)
    if start is not None:
        start.check([*found, *asked])
    identity = {
        "pairing": {f.name: asdict(cfg)[f.name] for f in fields(PairingConfig)},
        "seed": cfg.seed,
        "scorers": {scorer.column: scorer.identity() for scorer in scorers},
        "sampled": None if generation is None else digest(generation.identity),
        "read": digest([prompt.held for prompt in sorted(found, key=lambda prompt: prompt.key)]) if found else None,
        **({} if start is None else {"start": start.identity()}),
    }
    name = cfg.recipe or (generation.generator if generation is not None else answers[0].name.partition(".")[0])
    directory = PairsDirectory.place(out, None, cfg.run, name, identity)
    state = directory.open(identity, replace=replace)
    if generation is not None and generation.state != "complete":
        said += generation.notes
    return Pairing(cfg, generation, found, scorers, known, start, directory, identity, state, said)


def run(pairing: Pairing) -> dict[str, Any]:
    """Sample what is missing, score it, make pairs and write them.

    Returns:
        The content of summary.json.

    Raises:
        UsageError: a model or rule cannot be used.
        NoPairsError: no pair is left; what was sampled and scored is kept.
        AlphapoError: an engine failed; likewise.
        Interrupted: a signal arrived; likewise.
    """
    cfg, directory, began = pairing.cfg, pairing.directory, time.perf_counter()
    config, read_from = asdict(cfg), [prompt.where for prompt in pairing.read[:1]]
    directory.begin(manifest(identity=pairing.identity, data={"read": read_from}, config=config), cfg)
    prompts, generated = list(pairing.read), 0
    if pairing.generation is not None:
        place = pairing.generation.directory
        if pairing.generation.state != "complete":
            cost = generate.run(pairing.generation)["cost"]
            generated = len(pairing.generation.requests) - cost["answers_from_earlier_starts"]
        prompts = read.joined([*read.of_directory(place.path), *prompts])
    prompts, asked = score_all(prompts, pairing.scorers, cache_dir())
    built = build(prompts, cfg, pairing.columns, cfg.seed, pairing.start)
    directory.write_rows("dropped.jsonl", [rows.dropped_row(*one) for one in built.dropped])
    metrics = {**rows.summary_of(built, len(prompts)), **_scoring(prompts, pairing.scorers)}
    if not built.made:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in built.reasons.items())
        raise NoPairsError(
            f"no pair is left of {len(prompts)} prompts: {reasons}; see {directory.path / 'dropped.jsonl'}", metrics
        )
    ranked_by = cfg.pair.rank_by or (pairing.columns[0] if pairing.columns else None)
    directory.write_rows("pairs.jsonl", [rows.pair_row(made, pairing.columns) for made in built.made])
    directory.write_rows("scored.jsonl", [rows.list_row(one, pairing.columns, ranked_by) for one in built.lists])
    _draw(built, metrics, directory, cfg.recipe)
    measured = pairing.start.asked if pairing.start is not None else 0
    cost = {"seconds": time.perf_counter() - began, "generated": generated, "scored": asked, "pairs_measured": measured}
    return directory.finish("complete", recipe=cfg.recipe, metrics=metrics, columns=pairing.columns, cost=cost)


def _check_sampling(cfg: PairsConfig, answers: Sequence[Path], sample: bool) -> None:
    if cfg.source == "answers" and not answers:
        raise UsageError(f"recipe={cfg.recipe}: is for answers or pairs made elsewhere; give --answers FILE")
    if not sample and not answers:
        raise UsageError("answers of which model? give RUN or MODEL, or --answers DIR or FILE")
    if sample and not answers and cfg.generation.samples < 2 and cfg.pair.rejected.startswith("source:"):
        what = f"recipe={cfg.recipe}" if cfg.recipe else f"pair.rejected={cfg.pair.rejected}"
        raise UsageError(
            f"{what}: pairs the model's own answer with one that is given; name these by --answers FILE (prompt, and responses "
            "with one answer)"
        )
    if sample and not answers and cfg.generation.samples < 2:
        raise UsageError(
            f"generation.samples={cfg.generation.samples}: a pair needs two answers to a prompt; type generation.samples=5"
        )
    if cfg.generation.continue_assistant:
        raise UsageError("generation.continue_assistant: a pair's answers begin where the prompt ends; leave it out")


def _without_effect(typed: Collection[str]) -> list[str]:
    """Notes on what was typed of a sampling that does not take place."""
    keys = sorted(key for key in typed if key == "data.limit" or key.partition(".")[0] == "generation")
    return [f"{', '.join(keys)} had no effect: all answers were read, and no model was sampled"] if keys else []


def _generation(cfg: PairsConfig, model: str | None, cache: Path) -> generate.Generation:
    # Pairs are for training: the prompts are those of the training split, also where data names one for evaluation.
    data = dataclasses.replace(cfg.data, eval_path=None, eval_split=None)
    settings = GenerateConfig(cfg.model, data, cfg.generation, RunConfig(None, cfg.run.dir), cfg.seed)
    return generate.prepare(settings, model, cache=cache, prompts=_world_prompts(cfg.data))


def _start(cfg: PairsConfig, generation: generate.Generation | None, cache: Path) -> StartScores | None:
    """What scores pairs under the start model, where a setting names such a score."""
    needed, own = needs_start(cfg), cfg.start
    if not needed:
        return None
    if own.model is None and generation is None:
        raise UsageError(
            f"{needed[0]}: under which model? type start.model=RUN or MODEL, the one that training starts from"
        )
    if own.model is None and generation is not None:
        subject = generation.job.subject
    else:
        settings = SubjectConfig(revision=own.revision, dtype=own.dtype)
        subject = find(str(own.model), settings, cache, key="start.model")
    return StartScores(subject, cfg.data, own.batch_size, cache)


def _scoring(prompts: Sequence[Candidates], scorers: Sequence[Scorer]) -> dict[str, dict[str, int]]:
    """By column, the answers without a score and those that were scored behind a prompt without its beginning."""
    missing = {one.column: sum(one.column not in a.scores for p in prompts for a in p.answers) for one in scorers}
    cut = {one.column: one.shortened(prompts) for one in scorers}
    return {"not_scored": missing, "shortened": cut}


def _world_prompts(cfg: DataConfig) -> Prompts | None:
    """Training instructions of the embedded world, where they are asked for: its held-out ones measure what comes of it."""
    if not _of_world(cfg):
        return None
    texts = world.instructions(cfg.limit or GLASSBOX_PROMPTS, training=True)
    made = tuple(Prompt(text, ({"role": "user", "content": text},), "glassbox") for text in texts)
    return Prompts(made, "the embedded world's training instructions", read=len(made))


def _of_world(cfg: DataConfig) -> bool:
    return cfg.source == "glassbox" and cfg.path is None


def _asked(prompt: Prompt) -> Candidates:
    """A prompt whose answers are yet to be sampled."""
    return Candidates(prompt.side, (), {}, where=prompt.where)


def _draw(built: Built, metrics: dict[str, Any], directory: PairsDirectory, recipe: str | None) -> None:
    from alphapo_cli.plots.pairs import pairs_picture

    margins = [pair.margin for pair in built.pairs if pair.margin is not None]
    lengths = [len(p.chosen.text) for p in built.pairs], [len(p.rejected.text) for p in built.pairs]
    outcome = {"with pairs": metrics["prompts_with_pairs"], **built.reasons}
    title = f"{recipe or 'pairs'}: {len(built.pairs)} pairs of {metrics['prompts']} prompts"
    pairs_picture(margins, lengths, outcome, directory.path / "pairs.png", title)


def _as_meant(
    cfg: PairsConfig, typed: Collection[str], has_scores: bool, world_prompts: bool
) -> tuple[PairsConfig, list[str]]:
    """What is meant where the line does not say it: scorer and length of answers; and a note on a recipe's scorer."""
    if world_prompts and "generation.max_new_tokens" not in typed:
        cfg = dataclasses.replace(cfg, generation=dataclasses.replace(cfg.generation, max_new_tokens=None))
    of_scorer = [key for key in typed if key.partition(".")[0] == "scorer"]
    if of_scorer and cfg.scorer.name == "auto" and "scorer" not in typed:
        raise UsageError(f"{min(of_scorer)}: of which scorer? type scorer=NAME too (--help lists them)")
    if of_scorer:
        return cfg, []
    stands = "the embedded world's true reward" if world_prompts else "the scores of the answers"
    name = "glassbox" if world_prompts else "auto"
    if not (world_prompts or has_scores) or cfg.scorer.name in (name, "column", "length", "mean", "source"):
        return cfg, []
    notes = [
        f"{stands} stand{'s' if world_prompts else ''} for scorer={cfg.scorer.name} of the recipe; type scorer=... for it"
    ]
    return dataclasses.replace(cfg, scorer=ScorerConfig(name=name)), notes if cfg.scorer.name != "auto" else []
