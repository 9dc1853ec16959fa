"""Rows of data sets of the hub, from the network or the local cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from alphapo_cli.data.sources import Row, read_files, without_nulls
from alphapo_cli.errors import UsageError

REACH_SECONDS = 5.0  # to find out that there is no network; `datasets` alone retries for half a minute


def read_hub(
    name: str,
    config: str | None,
    split: str,
    revision: str | None,
    limit: int | None = None,
    data_dir: str | None = None,
) -> list[Row]:
    """Read a split of a hub data set, from the network or the local cache.

    Args:
        name: OWNER/DATASET, or OWNER/DATASET/FILE for one file of it; `config`, `split`, `data_dir` are then ignored.
        config: the data set's configuration.
        split: name of the split, or a slice of it.
        revision: branch, tag or commit.
        limit: rows at most; None: all.
        data_dir: folder of the data set to read.

    Returns:
        The first `limit` rows.

    Raises:
        UsageError: the data set, its configuration or its split does not exist, or is neither reachable nor cached.
    """
    if name.count("/") > 1:  # for data sets with a loading script, which `datasets` no longer runs
        return read_files([_hub_file(name, revision)], limit)
    import datasets

    fallback = "type data.path=FILE to read a local copy"
    with _offline_when_unreachable(name, revision) as problem:
        try:
            rows = datasets.load_dataset(name, config, data_dir=data_dir, split=split, revision=revision)
        except (ConnectionError, TimeoutError, datasets.exceptions.DatasetNotFoundError) as error:
            raise UsageError(
                f"hub data set '{name}': {problem or _first_line(error)}, and it is not in the cache; {fallback}"
            ) from error
        except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise UsageError(
                f"hub data set '{name}' (data.config={config or 'null'}, data.split={split}): {_first_line(error)}"
            ) from error
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    return [
        Row({key: without_nulls(value) for key, value in values.items()}, number, f"{name}: row {number}")
        for number, values in enumerate(rows, 1)
    ]


def _hub_file(name: str, revision: str | None) -> Path:
    """The local copy of OWNER/DATASET/FILE; UsageError for a file neither reachable nor cached."""
    import huggingface_hub

    owner, dataset, file = name.split("/", 2)
    with _offline_when_unreachable(f"{owner}/{dataset}", revision) as problem:
        try:
            return Path(
                huggingface_hub.hf_hub_download(f"{owner}/{dataset}", file, repo_type="dataset", revision=revision)
            )
        except (OSError, ValueError) as error:  # huggingface_hub's errors are subclasses
            raise UsageError(
                f"hub file '{name}': {problem or _first_line(error)}, and it is not in the cache; "
                "type data.path=FILE to read a local copy"
            ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


@contextlib.contextmanager
def _offline_when_unreachable(name: str, revision: str | None) -> Iterator[str | None]:
    """Ask the hub once; if it does not answer, `datasets` reads its cache alone inside the block. Yields the reason."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE or Path(name).exists():
        yield "the hub is switched off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else None
        return
    try:
        huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=REACH_SECONDS)
    except errors.GatedRepoError:
        problem: str | None = "access is gated (ask for it on its page, then hf auth login)"
    except errors.RevisionNotFoundError:
        problem = f"no revision '{revision}'"
    except errors.RepositoryNotFoundError:
        problem = "no such data set on the hub, or no access to it (hf auth login)"
    except (errors.HfHubHTTPError, ValueError) as error:
        problem = _first_line(error)
    except Exception as error:  # which error means no network depends on the HTTP library
        problem = f"the hub cannot be reached ({_first_line(error)})"
    else:
        problem = None
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or problem is not None
    try:
        yield problem
    finally:
        constants.HF_HUB_OFFLINE = before
