"""What is said about a generation: before it, of its inputs, and after it, of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alphapo_cli.data.data_report import named
from alphapo_cli.data.spelled_tokens import ESCAPE, Spelled
from alphapo_cli.data.tally import Tally
from alphapo_cli.data.thoughts import opens_thought, split_thoughts
from alphapo_cli.generation.backend import GenerationJob
from alphapo_cli.generation.prompt import Prompts
from alphapo_cli.generation.thinking import Thinking
from alphapo_cli.modeling.quantisation import NONE
from alphapo_cli.runtime.wording import rate

MANY = 0.5  # share of answers cut by the limit above which that is no exception
LOWEST_OF_VLLM = 0.01  # vLLM raises lower temperatures above 0 to this


def of_prompts(prompts: Prompts, unused: Tally, spelled: Spelled, special_tokens_in_text: str) -> list[str]:
    """Notes about prompts that the user may not have intended.

    Args:
        prompts: as read.
        unused: prompts by what the chat template leaves out of them.
        spelled: prompts that spell special tokens.
        special_tokens_in_text: what these are read as.

    Returns:
        One line each.
    """
    found = []
    if prompts.repeated:
        found.append(f"{prompts.repeated} of {prompts.read} rows repeat a prompt; each is answered once")
    if prompts.answered:
        found.append(
            f"{prompts.answered} of {prompts.read} conversations end with an answer, which is left out: it is generated "
            "(generation.continue_assistant=true continues an assistant turn)"
        )
    if prompts.unread:
        found.append(f"columns not used: {named(prompts.unread.counts)}")
    if unused:
        found.append(f"not in the text of the prompts: {named(unused.counts)}")
    if spelled.rows:
        how = "read as text" if special_tokens_in_text == "escape" else f"read as tokens; {ESCAPE}"
        found.append(
            f"{spelled.rows} of {len(prompts.rows)} prompts spell special tokens (first {spelled.first}): "
            f"{spelled.shown}, {how}"
        )
    return found


def of_engine(job: GenerationJob, backend: str, detour: str | None) -> list[str]:
    """Notes about how the answers come about.

    Args:
        job: model and settings.
        backend: vllm or transformers.
        detour: why it is not the one that auto would have taken.

    Returns:
        One line each.
    """
    cfg, dtype = job.cfg.generation, job.subject.dtype
    found = []
    if detour is not None:
        merged = job.subject.base is not None and job.subject.quantization == NONE
        found.append(f"{detour}; transformers answers{', with the adapter merged in memory' if merged else ''}")
    if (kind := job.subject.quantization) != NONE and job.subject.base is not None:
        found.append(
            f"the adapter lies over its base quantised to {kind}, as in training; model.quantization=none merges it into "
            "the base as it was before, which is another model"
        )
    if dtype != "float32" and not cfg.exact:
        found.append(
            f"the weights are {dtype}, in which answers depend on what else is in their batch (batch size, order, "
            "data.limit, interruptions): generation.exact=true makes each depend on its prompt and seed alone, "
            "model.dtype=float32 leaves ties to about 1e-6; compare answers before and after training with one of them"
        )
    if backend == "vllm" and 0 < job.temperature < LOWEST_OF_VLLM:
        found.append(f"generation.temperature={cfg.temperature:g}: vLLM samples at {LOWEST_OF_VLLM} or above, or at 0")
    return found


def verdict(metrics: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """Whether the answers are usable, in words.

    Args:
        metrics: see `statistics.describe`.
        limit: the most tokens of an answer.

    Returns:
        outcome ("cut", "empty" or "usable"), sentence, and n.
    """
    n = int(metrics["answers"])
    cut, empty = rate(metrics["share_cut"], n), rate(metrics["share_empty"], n)
    outcome, said = "usable", f"answers cut by the token limit {cut}; empty {empty}"
    if metrics["share_cut"] == 1:
        outcome, said = "cut", f"{cut} answers cut by the token limit: raise it (generation.max_new_tokens={2 * limit})"
    elif metrics["share_empty"] > MANY:
        outcome, said = "empty", f"{empty} answers are empty: see the chat template (data.template, data.system)"
    return {"outcome": outcome, "sentence": said, "n": n}


def of_answers(metrics: Mapping[str, Any], limit: int, thinking: Thinking) -> list[str]:
    """Warnings about answers that look like a wrong setting.

    Args:
        metrics: see `statistics.describe`.
        limit: the most tokens of an answer.
        thinking: what the model's chat template has to do with thoughts.

    Returns:
        One line each.
    """
    found = []
    if metrics["share_cut"] > MANY:
        found.append(
            f"{round(metrics['share_cut'] * metrics['answers']):,} of {metrics['answers']:,} answers are cut by the "
            f"limit of {limit} tokens; raise it "
            f"(generation.max_new_tokens={2 * limit})"
        )
    if metrics["share_empty"]:
        many = round(metrics["share_empty"] * metrics["answers"])
        found.append(
            f"{many} of {metrics['answers']} answers are empty: the model ended them at once; look at the template of the "
            "prompts (data.template, data.system, data.chat_template_kwargs), or draw others (seed, "
            "generation.temperature)"
        )
    if metrics["share_thinking"]:
        many = round(metrics["share_thinking"] * metrics["answers"])
        found.append(
            f"{many} of {metrics['answers']} answers hold a thought (<think>), which a judge reads as a part of them; "
            f"{_without_thoughts(thinking)}, and --strip-think of alphapo eval takes it away afterwards"
        )
    return found


def _without_thoughts(thinking: Thinking) -> str:
    """How answers are generated without thoughts."""
    key = "data.chat_template_kwargs"  # `prompts.` where generation is a stage of another command
    if thinking.switch is not None:
        return f"the chat template leaves it out with {key}.{thinking.switch} (of run and sweep: {key.replace('data', 'prompts')}.{thinking.switch})"
    if thinking.opens:
        return f"the chat template opens it and knows neither enable_thinking nor thinking: see which argument it has, for {key}"
    return f"{key}.enable_thinking=false is how some templates leave it out"


def thinks(prompt: str, answer: str) -> bool:
    """Whether an answer holds a thought, be it closed or not, also one that its prompt has opened.

    Args:
        prompt: the end of the prompt's text.
        answer: the answer's text, special tokens included.

    Returns:
        True where it does.
    """
    return opens_thought(prompt) or split_thoughts(answer).thoughts > 0
