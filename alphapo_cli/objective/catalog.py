"""The catalogue of methods in conf/objective/: the comments at the head of each YAML, and what its parts need.

A head is comment lines: sentences that describe the method, then `paper:`, `loss:` and `checked:` lines, and
`experimental:` with the reason if a formula's source was not read or its authors published no code. A level of
`checked:` that holds at other settings than the defaults names them: `TRL at objective.nll=0`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from alphapo_cli.config.objective_parts import PARTS
from alphapo_cli.config.overrides import Sources
from alphapo_cli.config.renamed import suggestion
from alphapo_cli.config.schema import ObjectiveConfig
from alphapo_cli.errors import ConfigError
from alphapo_cli.objective.build import build
from alphapo_cli.objective.objective import Objective
from alphapo_cli.objective.part import TABLES

KEYS = ("paper", "loss", "checked", "experimental")
# Values of `checked:`; the checks are in tests/objective and tests/training/test_trl_parity.py.
LEVELS = ("golden", "TRL", "identity")
LEGEND = (
    "L summed log-prob, R the reference's, n tokens, a = L/n, r = L - R, D = r_w - r_l (w chosen, l rejected); "
    "s sigmoid, ls log-sigmoid; odds = a - log(1 - e^a). golden: values of independent or the authors' own code; "
    "TRL: loss and every gradient equal TRL's trainers (at the settings named, if any); identity: equals another method in a limit, or a formula "
    "written out by hand."
)


@dataclass(frozen=True)
class Method:
    """A method: one YAML of conf/objective/."""

    name: str
    file: Path
    cfg: ObjectiveConfig

    @cached_property
    def objective(self) -> Objective:
        """The objective, built from the YAML."""
        return build(self.cfg)

    @cached_property
    def _head(self) -> list[str]:
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return [
            line.removeprefix("#").strip() for line in lines[: next(i for i, t in enumerate(lines) if t[:1] != "#")]
        ]

    @property
    def text(self) -> str:
        """Description of the method, in a sentence or two."""
        return " ".join(line for line in self._head if line.partition(":")[0] not in KEYS)

    def head_line(self, key: str) -> str:
        """Text of the head's line that starts with one of `KEYS`; empty if there is no such line."""
        return next((line.partition(":")[2].strip() for line in self._head if line.startswith(f"{key}:")), "")

    @property
    def checked(self) -> dict[str, tuple[str, ...]]:
        """Levels of the line `checked:`, of `LEVELS`, with the overrides at which each holds; none: the defaults."""
        entries = [entry.strip().partition(" at ") for entry in self.head_line("checked").split(",") if entry.strip()]
        return {level: tuple(overrides.split()) for level, _, overrides in entries}

    @property
    def defaults(self) -> dict[str, object]:
        """The value of beta, and the other settings in which the YAML differs from the schema's defaults."""
        schema = ObjectiveConfig()
        numbers = ("gamma", "gamma_beta_ratio", "label_smoothing", "label_model", "label_column", "preference", "nll",
                   "nll_scope", "reference_every", "reference_mix")  # fmt: skip
        settings: dict[str, object] = {"beta": self.cfg.beta}
        settings |= {key: value for key in numbers if (value := getattr(self.cfg, key)) != getattr(schema, key)}
        for kind, bound in self.objective.parts.items():
            settings |= {f"{kind}.{key}": value for key, value in bound.settings.items()}
        return settings

    @property
    def needs(self) -> list[str]:
        """What training with it needs beside the pairs' own log-probs, as phrases for the reader."""
        o = self.objective
        phrases = ["reference"] if o.needs_reference else []
        if o.needs_kl:
            phrases.append("reference run at every step")
        if o.needs_guide:
            phrases.append("guide model (model.guide)")
        if not o.needs_rejected:
            phrases.append("chosen side only")
        if o.reads_all is not None:
            phrases.append("K scored answers (K >= 2)")
        if o.needs_mismatched:
            phrases.append("answers to other prompts (made in training)")
        if o.sides(2) > 2:
            phrases.append(f"{o.sides(2)} answers")
        if o.pairing is None:
            phrases.append("pairs or unpaired rows")
        return [*phrases, *(f"column {name}" for name in o.columns)]


def methods(sources: Sources | None = None) -> list[Method]:
    """Every method, by name."""
    sources = sources or Sources()
    result = []
    for name in sources.groups()["objective"]:
        file = _file_of(name, sources)
        result.append(Method(name, file, ObjectiveConfig(**_settings_of(file, sources))))
    return result


def _file_of(name: str, sources: Sources, where: str = "") -> Path:
    file = sources.file("objective", name)
    if file is None:
        raise ConfigError(
            f"{where}there is no objective '{name}'{suggestion('objective', name, sources.groups()['objective'])}"
        )
    return file


def _settings_of(file: Path, sources: Sources) -> dict[str, Any]:
    """Merge the settings of an objective's YAML and its bases as Hydra does, in a hundredth of the time.

    A test compares the two.

    Returns:
        Settings of `ObjectiveConfig`, without parameters that belong to another part of the same kind.
    """
    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    body = {key: value for key, value in content.items() if key != "defaults"}
    merged: Any = OmegaConf.create()
    for entry in [*content.get("defaults", []), *([] if "_self_" in content.get("defaults", []) else ["_self_"])]:
        if entry == "_self_":
            layer = body
        elif isinstance(entry, str):
            layer = _settings_of(_file_of(entry, sources, f"{file}: "), sources)
        else:
            ((kind, name),) = entry.items()
            layer = {kind.removeprefix("override ").rpartition("/")[2]: {"name": name}}
        merged = OmegaConf.merge(merged, layer)
    settings: Any = OmegaConf.to_container(merged)
    for kind in PARTS:
        if kind in settings:  # parameters left over from another part of that kind
            part = TABLES[kind].get(settings[kind].get("name"))
            known = part.parameters if part is not None else {}
            settings[kind] = {k: v for k, v in settings[kind].items() if k == "name" or k in known}
    return settings  # type: ignore[no-any-return]


@functools.cache  # a sweep may call it for every cell
def _shipped() -> tuple[Method, ...]:
    return tuple(methods())


def needing(column: str) -> list[str]:
    """Names of the shipped methods that read `column` of the data."""
    return [m.name for m in _shipped() if column in m.objective.columns]


def reading_unpaired() -> list[str]:
    """Names of the shipped methods that can be trained on rows with a single answer."""
    return [m.name for m in _shipped() if m.objective.pairing is None]


def markdown(catalogue: list[Method]) -> str:
    """Render docs/objectives.md."""
    lines = [
        "# Objectives",
        "",
        "Written by `alphapo objectives --markdown`; a test keeps the two equal. Any of them: `alphapo train objective=NAME`.",
        "",
        LEGEND,
        "",
        "| name | loss of a pair | parts | defaults | needs | checked | paper |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for m in catalogue:
        checked = m.head_line("checked") + (" (experimental)" if m.head_line("experimental") else "")
        cells = [
            f"`{m.name}`",
            f"`{m.head_line('loss')}`",
            parts_of(m),
            _settings(m),
            ", ".join(m.needs),
            checked,
            m.head_line("paper"),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "## What each is", ""]
    for m in catalogue:
        experimental = f" *Experimental: {m.head_line('experimental')}.*" if m.head_line("experimental") else ""
        lines.append(f"- `{m.name}`: {m.text}{experimental}")
    return "\n".join(lines) + "\n"


def parts_of(method: Method) -> str:
    """Names of its parts, without those that do nothing."""
    names = (bound.part.name for bound in method.objective.parts.values())
    return " x ".join(name for name in names if name not in ("none", "constant")) or "none"


def _settings(method: Method) -> str:
    return ", ".join(f"{key}={value}" for key, value in method.defaults.items())


def lines(method: Method) -> list[str]:
    """Render one method for a terminal."""
    checked = method.head_line("checked") or "not checked"
    if method.head_line("experimental"):
        checked += f"; experimental: {method.head_line('experimental')}"
    rows = {
        "loss": method.head_line("loss"), "parts": parts_of(method), "defaults": _settings(method),
        "needs": ", ".join(method.needs) or "nothing more", "paper": method.head_line("paper"), "checked": checked,
    }  # fmt: skip
    return [method.name, f"    {method.text}", *(f"    {key + ':':10}{value}" for key, value in rows.items())]
