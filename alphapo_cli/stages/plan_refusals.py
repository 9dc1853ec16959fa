"""What generation and evaluation after training cannot do, said before training."""

from __future__ import annotations

from alphapo_cli.config.schema import ModelConfig, TrainConfig
from alphapo_cli.errors import UsageError


def check_adapter(cfg: ModelConfig) -> None:
    """Refuse (UsageError) an adapter that would be trained and that vLLM could not apply afterwards."""
    from alphapo_cli.generation.adapter_support import obstacle_of_settings

    obstacle = obstacle_of_settings(cfg.lora)
    if obstacle is None and cfg.quantization != ModelConfig().quantization:
        obstacle = f"lies over a base quantised to {cfg.quantization}, which is not built for vLLM"
    if obstacle is not None:
        raise UsageError(
            f"generation.backend=vllm: vLLM could not apply the adapter that model.lora trains: it {obstacle}; type "
            "model.merge=true, or generation=transformers"
        )


def refuse_true_reward(cfg: TrainConfig) -> None:
    """Refuse (UsageError) the embedded world's judge for other data."""
    paths = cfg.data.eval_path or cfg.data.path
    file = paths[0] if isinstance(paths, list) else paths or "FILE"
    raise UsageError(
        "the data are your own, and a true reward (judge=glassbox) is known for the embedded world's prompts only: name a "
        "judge (judge=openai or judge=vllm), for answers to the prompts of the held-out pairs or to others: type "
        f"prompts=jsonl prompts.path={file} (its prompts), or prompts=glassbox to mean the embedded world's"
    )
