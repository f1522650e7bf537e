"""What a language model may cost, and what it has cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.lab.chat_reply import TokenUsage
from agent.lab.errors import UserError
from agent.llm.transcript import Exchange


@dataclass(frozen=True)
class Limits:
    """The limits of everything that is spent."""

    max_tokens: int | None = None  # prompts and answers together
    max_cost: float | None = None  # dollars
    prices: tuple[float, float] | None = None  # dollars per million tokens of prompts and of answers

    def __post_init__(self) -> None:
        """Raise UserError if a number is no dollars, or a cost is limited without prices."""
        if any(not 0 <= dollars < math.inf for dollars in (self.max_cost or 0, *(self.prices or ()))):
            raise UserError("--max-cost, --price-in and --price-out are dollars: give numbers from 0 on")
        if self.max_cost is not None and self.prices is None:
            raise UserError(
                "--max-cost needs the model's prices: give --price-in and --price-out, in dollars per million tokens"
            )

    def cost(self, usage: TokenUsage) -> float | None:
        """Return dollars, or None without prices."""
        if self.prices is None:
            return None
        return (usage.tokens_in * self.prices[0] + usage.tokens_out * self.prices[1]) / 1e6

    def longest_answer(self, spent: "Spent", tokens_in: int) -> float:
        """Return how many tokens an answer to a prompt of `tokens_in` may have; infinity without limits."""
        room = [math.inf]
        if self.max_tokens is not None:
            room.append(self.max_tokens - spent.tokens - tokens_in)
        if self.max_cost is not None and self.prices:
            left = self.max_cost - (spent.cost or 0) - tokens_in * self.prices[0] / 1e6
            room.append(left * 1e6 / self.prices[1] if self.prices[1] else math.copysign(math.inf, left))
        return max(min(room), 0)


@dataclass(frozen=True)
class Spent:
    """The sum of some exchanges."""

    calls: int
    tokens_in: int
    tokens_out: int
    cost: float | None  # dollars; None without prices
    estimated: bool = False  # some of the tokens

    @classmethod
    def sum_of(cls, exchanges: Sequence[Exchange], limits: Limits) -> "Spent":
        """Sum exchanges; those recorded without a cost get the prices of `limits`."""
        costs = [limits.cost(e.usage) if e.cost is None else e.cost for e in exchanges]
        known = [cost for cost in costs if cost is not None]
        return cls(
            calls=len(exchanges),
            tokens_in=sum(exchange.usage.tokens_in for exchange in exchanges),
            tokens_out=sum(exchange.usage.tokens_out for exchange in exchanges),
            cost=sum(known) if len(known) == len(costs) else None,
            estimated=any(exchange.usage.estimated for exchange in exchanges),
        )

    def plus(self, usage: TokenUsage, cost: float | None) -> "Spent":
        """Return the sum with one more exchange."""
        return replace(
            self,
            calls=self.calls + 1,
            tokens_in=self.tokens_in + usage.tokens_in,
            tokens_out=self.tokens_out + usage.tokens_out,
            cost=None if self.cost is None or cost is None else self.cost + cost,
        )

    @property
    def tokens(self) -> int:
        return self.tokens_in + self.tokens_out

    @property
    def in_words(self) -> str:
        return f"{'about ' * self.estimated}{self.tokens:,} tokens"
