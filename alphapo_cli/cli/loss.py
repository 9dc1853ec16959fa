"""`alphapo loss`."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from pathlib import Path
from typing import Annotated

import typer

from alphapo_cli.cli.common import ConfigDir, ConfigPath, Overrides, PrintConfig, sources
from alphapo_cli.errors import ConfigError, UsageError


def register(app: typer.Typer) -> None:
    """Add `alphapo loss` to the application."""
    app.command(short_help="Evaluate an objective on log-probs of your own.")(loss)


def loss(
    pairs: Annotated[
        Path | None,
        typer.Argument(help="JSON Lines with chosen_logp, rejected_logp (sums), chosen_tokens, rejected_tokens."),
    ] = None,
    overrides: Overrides = None,
    config: ConfigPath = None,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    """Evaluate an objective on summed log-probs, in float64: one JSON line a pair with loss, rewards and gradients.

    Rows may hold ref_chosen_logp and ref_rejected_logp and any column that the objective needs.

    Objectives that read each answer by itself take rows with the chosen or the rejected answer alone.

    A row with more answers holds lists instead: logps (sums), tokens, ref_logps, scores. With scores the best answer
    is chosen and the worst rejected; without, the first and the second. Its line then has loss, rewards, margin and
    d_loss_d_logps, lists in the row's order.

    \b
    Examples:
      alphapo loss pairs.jsonl objective=dpo objective.beta=0.05
      alphapo loss pairs.jsonl objective=alphapo objective.shape.alpha=-1
    \f

    Raises:
        ConfigError: an override sets another group than objective.
        UsageError: no pairs are named.
    """
    from alphapo_cli.config.compose import compose, to_dict, to_yaml
    from alphapo_cli.config.config_file import compose_under, load
    from alphapo_cli.config.keys import leaves, suggestion
    from alphapo_cli.config.overrides import parse, split
    from alphapo_cli.config.schema import TrainConfig

    where = sources(config_dir)
    if (
        pairs is not None and str(pairs).startswith("objective") and "=" in str(pairs) and not pairs.exists()
    ):  # an override in the place of the pairs
        overrides, pairs = [str(pairs), *(overrides or [])], None
    parsed = parse(overrides or [])
    for override in parsed:
        key = override.key_or_group
        if key.partition(".")[0].partition("/")[0] != "objective":
            known = leaves(to_dict(compose("train", TrainConfig, [], where).objective), "objective.")
            raise ConfigError(
                f"'{override.input_line}': alphapo loss takes overrides of objective, objective/... and objective.* only"
                f"{suggestion(key, key, list(known))}"
            )
    file = load(config)
    file = None if file is None else file.within("objective").part(["objective"])
    cfg = compose_under(file, "train", TrainConfig, [split(parsed, where)], where)
    if print_config:
        print(to_yaml(cfg.objective), end="")
        return
    if pairs is None:
        raise UsageError("which pairs? give a file of JSON Lines before the overrides: alphapo loss PAIRS.jsonl ...")
    content = _content(pairs)

    import json

    from alphapo_cli.objective.build import build
    from alphapo_cli.stages import loss_pairs

    name = str(pairs)
    results = loss_pairs.evaluate(build(cfg.objective), loss_pairs.parse(io.BytesIO(content), name), name)
    # After every row has been computed, so that stdout has all rows or none.
    sys.stdout.write("".join(json.dumps(result, allow_nan=False) + "\n" for result in results))


def _content(path: Path) -> bytes:
    """The file's bytes, decompressed where its name ends in .gz; raises UsageError where it cannot be read."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path}: cannot be read ({reason})") from error
