"""What a judge costs that is paid by the token, from the prompts and the longest answers that may come."""

from __future__ import annotations

from dataclasses import dataclass

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.evaluation.judges.openai import OpenAIEngine
from alphapo_cli.evaluation.judges.prompt import Message as JudgeMessage
from alphapo_cli.evaluation.judges.prompt import estimate_tokens, load_template
from alphapo_cli.generation.prompts import load_prompts
from alphapo_cli.stages.own_prompts import own_prompts
from alphapo_cli.stages.plan import Plan

_LONGEST = 2048  # generation.max_new_tokens where that is null


@dataclass(frozen=True)
class JudgeCost:
    """Requests of one evaluation.

    Attributes:
        requests: their number.
        tokens: tokens in, at most: answers as long as generation.max_new_tokens.
        usd: price at most; None where none is known.
    """

    requests: int
    tokens: int
    usd: float | None


def judge_cost(plan: Plan, cfg: TrainConfig) -> JudgeCost | None:
    """Count what evaluating one run asks of an endpoint.

    Args:
        plan: generation and evaluation after training.
        cfg: the configuration of the training.

    Returns:
        The cost; None for a judge that is no endpoint.
    """
    generate, evaluate = plan.settings()
    judge = evaluate.judge
    if judge.name != "openai":
        return None
    if plan.takes_own_prompts(cfg):
        prompts = own_prompts(cfg, generate.data.limit)
    else:
        prompts = load_prompts(generate.data, continue_assistant=generate.generation.continue_assistant)
    template = load_template(judge.prompt_file).messages
    longest = generate.generation.max_new_tokens or _LONGEST
    each = (2 if judge.both_orders else 1) * len({*plan.at, 1.0})  # of the last step, and those of eval.at
    tokens = sum(
        estimate_tokens([*template, JudgeMessage("user", prompt.instruction)]) + 2 * longest for prompt in prompts.rows
    )
    requests = each * len(prompts.rows)  # of several samples the first is judged
    total = each * tokens
    return JudgeCost(requests, total, OpenAIEngine(judge, None).price(total, requests))
