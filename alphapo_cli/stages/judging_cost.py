"""What the judgements of a run will cost at most, said before it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from alphapo_cli.evaluation.judges.openai import OpenAIEngine
from alphapo_cli.evaluation.judges.prompt import estimate_tokens, fill, load_template
from alphapo_cli.evaluation.schema import JudgeConfig


def check_limit(judge: JudgeConfig, max_cost: float | None) -> None:
    """Check that a price is known where there is a limit.

    Args:
        judge: the judge.
        max_cost: the limit in USD, None without one.

    Raises:
        UsageError: it is not.
    """
    if judge.name == "openai" and max_cost is not None:
        OpenAIEngine(dataclasses.replace(judge, max_cost=max_cost), None).check_price()


def announcement(judge: JudgeConfig, instructions: Sequence[str], models: int, max_new_tokens: int | None) -> str:
    """One line: how many judgements there will be, and their price where they have one.

    Args:
        judge: the judge.
        instructions: the prompts that every model answers.
        models: how many models are evaluated.
        max_new_tokens: most tokens of an answer; answers rarely have as many, so that the price is an upper bound. None: what
            the model's context allows, of which no price is told.

    Returns:
        The line.
    """
    orders = 2 if judge.both_orders and judge.name in ("openai", "vllm") else 1
    count = models * len(instructions) * orders
    each = " in both orders" if orders == 2 else ""
    line = f"{models} models x {len(instructions)} prompts{each}: {count:,} judgements by {judge.model or judge.name}"
    if judge.name != "openai":
        return line
    if max_new_tokens is None:
        return f"{line}; their price depends on how long answers are (generation.max_new_tokens bounds it)"
    engine, template = OpenAIEngine(judge, None), load_template(judge.prompt_file)
    tokens = sum(estimate_tokens(fill(template, text, "", "")) + 2 * max_new_tokens for text in instructions)
    price = engine.price(models * orders * tokens, count)
    if price is None:
        return f"{line}, price unknown (judge.price_input, judge.price_output)"
    return f"{line}, at most about ${price:,.2f} (every answer as long as generation.max_new_tokens={max_new_tokens})"
