"""When a hypothesis counts as supported or refuted: the rules that an idea declares before any run."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.lab.metrics import METRICS

Outcome = Literal[  # of a run on the primary metric
    "better",
    "unconfirmed",
    "untested",
    "not upheld",
    "not confirmed",
    "not better",
    "worse",
    "negligible",
    "within noise",
    "not comparable",
]
ANY = "any"  # in place of a step: it is enough that one run meets the condition
Name = Annotated[str, Field(min_length=1)]


class Condition(BaseModel):
    """A condition on a run, given by its step in the plan: on a headline metric, or on one of the idea's own measures.

    A metric is its difference from the baseline at the run's own L0, or that from the difference of another step
    (`than`); its whole 95% interval must lie above or below the limit. With `outcome` it is the study's primary metric,
    and the run's outcome must be one of these. A measure is the run's figure, or its difference from that of another
    step or from another measure of the same run (`than`); it has no interval, so the limit must leave room for noise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: Name
    outcome: tuple[Outcome, ...] = ()
    metric: str = ""
    measure: str = ""
    than: str = ""
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _require_one_question(self) -> Self:
        if bool(self.metric) == bool(self.measure):
            raise ValueError("expected one of metric and measure")
        if self.outcome and self.measure:
            raise ValueError("a measure has no outcome: give above or below")
        if [bool(self.outcome), self.above is not None, self.below is not None].count(True) != 1:
            raise ValueError("expected one of outcome, above and below")
        if self.outcome and self.than:
            raise ValueError("an outcome is that against the baseline: leave than out")
        if self.metric and not (self.metric in METRICS and METRICS[self.metric].decides):
            raise ValueError(f"expected a metric that decides, found {self.metric!r}")
        return self

    def __str__(self) -> str:
        """Return the condition in words: "composed_fraction of curriculum, from that of no_composition, above 0.05"."""
        asked = f"{'below' if self.above is None else 'above'} {self.limit:g}" if not self.outcome else ""
        than = f", from that of {self.than}" if self.than else ""
        return f"{self.metric or self.measure} of {self.step}{than} {asked or ' or '.join(self.outcome)}"

    @property
    def limit(self) -> float:
        """Return the limit of a metric or measure."""
        limit = self.below if self.above is None else self.above
        assert limit is not None
        return limit

    def holds(self, low: float, high: float) -> bool | None:
        """Return whether all of an interval is beyond the limit, or None if it contains it."""
        if self.above is not None:
            low, high = low - self.above, high - self.above
        else:
            low, high = self.limit - high, self.limit - low
        return True if low > 0 else False if high < 0 else None


class Rules(BaseModel):
    """The hypothesis is supported if all of the first conditions hold, and refuted if any of the second does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    supported_if_all: Annotated[tuple[Condition, ...], Field(min_length=1)]
    refuted_if_any: Annotated[tuple[Condition, ...], Field(min_length=1)]

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return self.supported_if_all + self.refuted_if_any
