"""Which files a path names, and by which split: a file, a pattern, or a folder of one of the kinds that hold data sets.

    folder                            its splits
    datasets.save_to_disk             those of dataset_dict.json, each with the files of its state.json
    copy of a hub data set            those that the head of its README.md names, or as below
    directory of `alphapo pairs`      none: its pairs.jsonl
    any other, subfolders included    by the hub's rules: data/NAME-00000-of-00001.*, else train, validation or test (or
                                      training, valid, val, dev, testing, eval, evaluation) as a word of a folder's name,
                                      else of a file's; without such words, all data files of the folder itself

Only the split that `data.split` names is read. Folders that hold something else (a model, a run, the hub's cache) are
refused by what they are.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alphapo_cli.data.sources import SUFFIXES, suffix_of
from alphapo_cli.data.splits import by_name, missing_part, named_in_readme, shard_of
from alphapo_cli.errors import UsageError, nearest
from alphapo_cli.storage.strict_json import read_object

# Beside data, files of a folder that describe it.
_METADATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_OTHER_DATA = (
    ".txt", ".tsv", ".ndjson", ".zst", ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".lz4", ".7z", ".xls", ".xlsx",
    ".pkl", ".pickle", ".feather", ".avro", ".orc", ".h5", ".hdf5", ".db", ".sqlite", ".xml", ".yaml", ".yml",
)  # fmt: skip


@dataclass(frozen=True)
class DataFiles:
    """The files that a path names.

    Attributes:
        files: those to read, in order.
        splits: names of the splits that they are; none where the path has no splits.
        left: numbers of files of the splits that are not read.
        unread: files that belong to no split or are of no known type, as in the path.
    """

    files: list[Path]
    splits: tuple[str, ...] = ()
    left: Mapping[str, int] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


def find(path: str, split: str = "train", config: str | None = None, setting: str = "data.split") -> DataFiles:
    """Find the files that a path names.

    Args:
        path: a file, a folder, or a glob pattern, all of whose files are read.
        split: of a folder with several splits, the one to read, or several as `train+test`, or `all`.
        config: of a hub data set with several configurations, the one to read.
        setting: what names the split, for messages.

    Returns:
        The files, and what else there is.

    Raises:
        UsageError: the path is missing or holds no data, or it has no such split; the message has the nearest name.
    """
    if not path:  # from data.path=$UNSET; Path would read it as the current folder
        raise UsageError("data.path (or data.eval_path) is empty: type data.path=FILE")
    try:
        target = Path(path).expanduser()
        if target.is_dir():
            return _of_folder(target, path, split, config, setting)
        return DataFiles(_matching(target, path))
    except (OSError, RuntimeError) as error:  # no permission, a name too long; ~ of an unknown user
        raise UsageError(
            f"{path}: cannot be looked at ({getattr(error, 'strerror', None) or error}); correct it"
        ) from error


def splits_of(path: str, config: str | None = None) -> tuple[str, ...]:
    """Names of the splits of a folder that has any; none for other paths, and for those that cannot be read."""
    try:
        found = find(path, "all", config)
    except UsageError:
        return ()
    return found.splits


def _matching(target: Path, path: str) -> list[Path]:
    """The file, or the files of a pattern."""
    if target.is_file():
        if not suffix_of(target):
            raise UsageError(f"{path}: unknown file type; alphapo reads {', '.join(SUFFIXES)}")
        return [target]
    if glob.has_magic(path):
        files = sorted(Path(name) for name in glob.glob(str(target), recursive=True))
        files = [file for file in files if file.is_file() and suffix_of(file)]
        if files:
            return files
        raise UsageError(f"{path}: no data file matches; alphapo reads {', '.join(SUFFIXES)}")
    folder = target.parent
    if not folder.is_dir():
        raise UsageError(f"{path}: no such file; the folder {folder} does not exist either")
    hint = nearest(target.name, [file.name for file in folder.iterdir()])
    raise UsageError(f"{path}: no such file{hint or '; set data.path to a file of ' + ', '.join(SUFFIXES)}")


def _of_folder(folder: Path, path: str, split: str, config: str | None, setting: str) -> DataFiles:
    if (folder / "dataset_dict.json").is_file():
        names = [str(name) for name in _json(folder / "dataset_dict.json").get("splits", [])]
        splits = {name: _saved(folder / name) for name in names}
        return _chosen(splits, (), path, split, setting)
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        name = _json(folder / "state.json").get("_split")
        return DataFiles(_saved(folder), (str(name),) if name else ())
    made = _of_pairs(folder, path)
    if made is not None:
        return DataFiles(made)
    _refuse_others(folder, path)
    names = _data_names(folder)
    splits = named_in_readme(folder, path, config, _data_names)
    if not splits:
        splits = {name: [folder / file for file in files] for name, files in by_name(names).items()}
    if splits:
        read = {file for files in splits.values() for file in files}
        rest = [name for name in names if folder / name not in read]
        if "train" not in splits and rest and not any(map(shard_of, names)):
            # The hub would leave these out; but what stands beside a test set is what trains.
            splits, rest = {"train": [folder / name for name in rest], **splits}, []
        return _chosen(splits, (*rest, *_unknown(folder)), path, split, setting)
    files = [folder / name for name in names if "/" not in name] or [folder / name for name in names]
    if not files:
        others = _unknown(folder)
        raise UsageError(
            f"{path}: no data file in this folder{f' ({others[0]} is of another type)' if others else ''}; alphapo reads "
            f"{', '.join(SUFFIXES)}"
        )
    _check_whole(files, path)
    rest = [name for name in names if folder / name not in files]
    return DataFiles(files, (), {}, (*rest, *_unknown(folder)))


def _chosen(splits: Mapping[str, list[Path]], unread: Sequence[str], path: str, split: str, setting: str) -> DataFiles:
    """The files of the splits that are asked for; a folder with a single split is read whatever its name."""
    if not split and len(splits) > 1:
        raise UsageError(f"{path}: holds several splits ({', '.join(splits)}); type {setting}=NAME")
    if "[" in split:
        raise UsageError(f"{setting}={split}: slices are for data sets of the hub; of a folder, take data.limit=N")
    wanted = list(splits) if split == "all" or len(splits) == 1 else [name.strip() for name in split.split("+")]
    for name in wanted:
        if name not in splits:
            raise UsageError(
                f"{path}: has no split '{name}'{nearest(name, splits)} (splits: {', '.join(splits)}); type {setting}=NAME"
            )
    files = [file for name in wanted for file in splits[name]]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise UsageError(f"{path}: its split {'+'.join(wanted)} names {missing}, which is not there; copy it again")
    _check_whole(files, path)
    left = {name: len(files) for name, files in splits.items() if name not in wanted}
    return DataFiles(files, tuple(wanted), left, tuple(unread))


def _check_whole(files: Sequence[Path], path: str) -> None:
    """Refuse (UsageError) a part of the files that a data set was written to, as an interrupted download leaves it."""
    missing = missing_part(files)
    if missing is not None:
        raise UsageError(
            f"{path}: holds a part of a data set: {missing} is not there; copy it whole, or name the files to read "
            "(data.path='[FILE,FILE]')"
        )


def _saved(folder: Path) -> list[Path]:
    """The files of a data set that save_to_disk wrote."""
    state = _json(folder / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UsageError(
            f"{folder}: holds a selection of rows beside its data, as older versions of datasets saved it; save "
            "dataset.flatten_indices() instead"
        )
    names = [
        entry["filename"] for entry in state.get("_data_files", []) if isinstance(entry, dict) and "filename" in entry
    ]
    if not names:
        raise UsageError(f"{folder}: its state.json names no data files; save the data set again")
    return [folder / str(name) for name in names]


def _of_pairs(folder: Path, path: str) -> list[Path] | None:
    """The pairs that `alphapo pairs` left in its directory; None for other folders, UsageError for one without pairs."""
    identity = (read_object(folder / "manifest.json") or {}).get("identity")
    if not isinstance(identity, dict) or "pairing" not in identity:
        return None
    if (read_object(folder / "summary.json") or {}).get("state") != "complete":
        raise UsageError(f"{path}: its pairs are not all there; type its alphapo pairs line again")
    return [folder / "pairs.jsonl"]


def _refuse_others(folder: Path, path: str) -> None:
    """Refuse (UsageError) a folder that is known to hold something else than data."""
    config = read_object(folder / "config.json") or {}
    if not {"model_type", "architectures"}.isdisjoint(config) or (folder / "adapter_config.json").is_file():
        raise UsageError(f"{path}: is the folder of a model, not of data; did you mean model.path={path}?")
    if (folder / "manifest.json").is_file() and (folder / "config.yaml").is_file():
        raise UsageError(f"{path}: is the directory of a run, not of data; did you mean model.path={path}?")
    snapshots = sorted(folder.glob("snapshots/*/"))
    if snapshots and (folder / "refs").is_dir():
        main = folder / "refs" / "main"
        name = main.read_text(encoding="utf-8").strip() if main.is_file() else snapshots[-1].name
        raise UsageError(f"{path}: is the hub's cache of a repository; type data.path={folder / 'snapshots' / name}")


def _data_names(folder: Path) -> list[str]:
    """Data files of a folder and its subfolders by their relative names, hidden and private ones left out."""
    return [name for name, file in _walk(folder) if suffix_of(file) and file.name not in _METADATA]


def _unknown(folder: Path) -> list[str]:
    """Files of a folder that look like data, of types that alphapo does not read."""
    return [name for name, file in _walk(folder) if not suffix_of(file) and file.suffix.lower() in _OTHER_DATA]


def _walk(folder: Path) -> Iterable[tuple[str, Path]]:
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and not any(part.startswith((".", "__")) for part in parts):
            yield "/".join(parts), file


def _json(file: Path) -> dict[str, Any]:
    """The object in a file of the data set's; UsageError for one that cannot be read."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read ({error}); save the data set again") from error
    return value if isinstance(value, dict) else {}
