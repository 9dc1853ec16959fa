"""The splits of a folder of data files: by the names of files and folders, or by the head of a README.md.

The rules are those of the hub, so that a copy of a data set gives the rows that the hub's name gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError, nearest

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SEPARATORS = r"\-._ 0-9"
_SHARDED = re.compile(r"(data/)?(\w+(?:\.\w+)*)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*")
_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})(?![0-9]).*")


def shard_of(name: str) -> str | None:
    """The split that a relative file name of the hub's form data/SPLIT-00000-of-00001.SUFFIX names; None for others."""
    match = _SHARDED.fullmatch(name)
    if match is None:
        return None
    # The folder data/ itself may be what is read; its files are known by a word in the split's name.
    known = match.group(1) or any(_says(f"{match.group(2)}.", words, in_folder=False) for words in WORDS.values())
    return match.group(2) if known else None


def missing_part(files: Iterable[Path]) -> str | None:
    """The name, without what follows the numbers, of a part of files (NAME-00000-of-00002.*) that is not beside them."""
    for folder in dict.fromkeys(file.parent for file in files):
        there = [match.groups() for file in folder.iterdir() if (match := _PART.fullmatch(file.name))]
        for name, total in dict.fromkeys((name, total) for name, _, total in there):
            if not any(file.parent == folder and file.name.startswith(f"{name}-") for file in files):
                continue
            numbers = {int(number) for other, number, of in there if (other, of) == (name, total)}
            lacking = min(set(range(int(total))) - numbers, default=None)
            if lacking is not None:
                return f"{name}-{lacking:05d}-of-{total}"
    return None


def by_name(names: Iterable[str]) -> dict[str, list[str]]:
    """Sort relative file names by split, by the hub's rules; empty where no name says a split."""
    names = list(names)
    sharded: dict[str, list[str]] = {}
    for name in names:
        split = shard_of(name)
        if split is not None:
            sharded.setdefault(split, []).append(name)
    if sharded:
        known = [split for split in WORDS if split in sharded]
        return {split: sharded[split] for split in (*known, *sorted(sharded.keys() - known))}
    for in_folder in (True, False):
        found = {split: [name for name in names if _says(name, words, in_folder)] for split, words in WORDS.items()}
        if any(found.values()):
            return {split: files for split, files in found.items() if files}
    return {}


def _says(name: str, words: Sequence[str], in_folder: bool) -> bool:
    """Whether a folder of a relative file name, or the file's own name, has one of the words."""
    *folders, file = name.split("/")
    word = rf"(?:.*[{_SEPARATORS}])?(?:{'|'.join(words)})"
    if in_folder:
        return any(re.fullmatch(rf"{word}(?:[{_SEPARATORS}].*)?", part) for part in folders)
    return re.fullmatch(rf"{word}[{_SEPARATORS}].*", file) is not None


def named_in_readme(
    folder: Path, path: str, config: str | None, data_names: Callable[[Path], list[str]]
) -> dict[str, list[Path]]:
    """The files by split that the head of a folder's README.md names.

    Args:
        folder: the folder.
        path: its name in messages.
        config: the configuration to read; None: the default one.
        data_names: lists the data files of a folder by their relative names.

    Returns:
        Files by split; empty where the README.md names none.

    Raises:
        UsageError: there is no such configuration, or several and none is the default.
    """
    configs = [entry for entry in _readme_head(folder).get("configs") or [] if isinstance(entry, dict)]
    if not configs:
        return {}
    names = [str(entry.get("config_name", "default")) for entry in configs]
    default = next((n for n, e in zip(names, configs, strict=True) if e.get("default")), "default")
    wanted = config or (default if default in names or len(names) > 1 else names[0])
    if wanted not in names:
        listed = f"configurations: {', '.join(names)}"
        raise UsageError(
            f"{path}: holds several data sets ({listed}); type data.config=NAME"
            if config is None
            else f"data.config={config}: {path} has no such configuration{nearest(config, names)} ({listed})"
        )
    entry = configs[names.index(wanted)]
    files = entry.get("data_files")
    inside = folder / str(entry.get("data_dir") or "")
    if files is None:
        found = by_name(data_names(inside)) or {"train": data_names(inside)}
        return {split: [inside / name for name in names] for split, names in found.items() if names}
    if isinstance(files, list) and all(isinstance(item, dict) for item in files):
        patterns = {str(item.get("split", "train")): item.get("path") for item in files}
    else:
        patterns = files if isinstance(files, dict) else {"train": files}
    return {split: _globbed(inside, pattern) for split, pattern in patterns.items()}


def _globbed(folder: Path, patterns: Any) -> list[Path]:
    """Files that patterns name, relative to a folder; a pattern without a match stands for itself."""
    found: list[Path] = []
    for pattern in patterns if isinstance(patterns, list) else [patterns]:
        matched = sorted(folder.glob(str(pattern))) if not str(pattern).startswith("/") else []
        found += [file for file in matched if file.is_file()] or [folder / str(pattern)]
    return found


def _readme_head(folder: Path) -> dict[str, Any]:
    """The YAML at the head of a README.md; empty where there is none."""
    import yaml

    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        match = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|\Z)", text, re.S)
        head = yaml.safe_load(match.group(1)) if match else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return head if isinstance(head, dict) else {}
