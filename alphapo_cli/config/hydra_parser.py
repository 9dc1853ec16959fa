"""Hydra's parser of overrides, which works under `python -O` as well.

Hydra 1.3 reads on inside of two asserts (its issue 2570), so that without asserts no function, as in seed=range(0,3),
and no mapping can be read. Its module is then compiled once more, with them.
"""

from __future__ import annotations

import inspect

from hydra.core.override_parser import overrides_parser, overrides_visitor
from hydra.core.override_parser.overrides_parser import OverridesParser

__all__ = ["OverridesParser"]

if not __debug__:
    source = inspect.getsource(overrides_visitor)
    code = compile(source, overrides_visitor.__file__, "exec", dont_inherit=True, optimize=0)
    exec(code, overrides_visitor.__dict__)
    overrides_parser.HydraOverrideVisitor = overrides_visitor.HydraOverrideVisitor  # type: ignore[attr-defined]
