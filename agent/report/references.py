"""SAEs that were trained elsewhere, as tables and notes show them: beside the baseline, without interval or outcome."""

from collections.abc import Mapping
from dataclasses import dataclass

from agent.comparison.references import Beside, beside_baseline
from agent.display.formatting import error_lines, format_value
from agent.lab.metrics import HEADLINE, METRICS
from agent.report import sentences
from agent.report.layout import paragraph
from agent.study.records import Reference
from agent.study.reference_events import ReferenceScored
from agent.study.state import State

OUTCOME = "reference"  # in the place of one


@dataclass(frozen=True)
class Shown:
    """A reference with its figures, if it has any."""

    number: int  # from 1, in the order in which they were given
    reference: Reference
    scored: ReferenceScored | None
    beside: Beside

    @property
    def label(self) -> str:
        return f"reference {self.reference.name}"

    @property
    def outcome(self) -> str:
        """What stands in the place of an outcome."""
        if self.scored is None:
            return "not scored yet"
        return OUTCOME if self.scored.verdict.ok else self.scored.verdict.name

    @property
    def in_words(self) -> str:
        """The reference with its width and training, as a table has room for."""
        tokens = "tokens unknown" if self.tokens is None else f"{self.tokens:,} tokens"
        return f"{self.label}, d_sae {self.reference.d_sae:,}, {tokens}"

    @property
    def tokens(self) -> int | None:
        """The tokens of its training, if its files declare them."""
        return self.reference.imported.declared_tokens

    @property
    def counts(self) -> bool:
        """True if it has figures that mean something."""
        return self.scored is not None and self.scored.verdict.ok

    def figure(self, name: str) -> float | None:
        """Return a metric; None if it was not measured."""
        return self.scored.figures.get(name) if self.scored else None


def shown(state: State) -> list[Shown]:
    """Return the references of a study, in the order in which they were given."""
    found = []
    for number, (name, reference) in enumerate(state.references.items(), 1):
        scored = state.references_scored.get(name)
        found.append(Shown(number, reference, scored, beside_baseline(scored.figures if scored else {}, state)))
    return found


def lines(state: State) -> list[str]:
    """Return the lines of the notes on the references."""
    return [line for each in shown(state) for text in texts(each, state) for line in paragraph(text).split("\n")]


def texts(each: Shown, state: State) -> list[str]:
    """Return a paragraph on a reference, and one on each warning about it."""
    name, reference, scored = each.reference.name, each.reference, each.scored
    origin = reference.imported
    width = "" if reference.d_sae == state.started.fixed.d_sae else f" (the study's {state.started.fixed.d_sae:,})"
    said = sentences.REFERENCE.render(
        sae=name,
        architecture=origin.architecture,
        source=origin.source,
        format=origin.format,
        tokens="an unknown number of tokens" if each.tokens is None else f"{each.tokens:,} tokens",
        d_sae=f"{reference.d_sae:,}",
        width=width,
        checked=_checked(reference),
    )
    warnings = [*origin.warnings]
    if scored is None:
        said += f" {sentences.REFERENCE_UNSCORED.render(sae=name)}"
    elif not scored.verdict.ok:
        verdict = scored.verdict
        said += f" {sentences.REFERENCE_NONE.render(sae=name, verdict=verdict.name, evidence=verdict.evidence)}"
    else:
        said = " ".join([said, _scores(each), _beside(each)])
        warnings = [*scored.verdict.warnings, *error_lines(scored.errors)]
    return [said, *(sentences.REFERENCE_WARNING.render(sae=name, warning=warning) for warning in warnings)]


def _checked(reference: Reference) -> str:
    """Say how the checkpoint that is scored was compared with what the SAE's own library makes of it."""
    origin = reference.imported
    if not origin.library or origin.verified is None:
        return "no library was there to check the conversion by"
    share = f"{origin.verified.reconstruction:.1g}"
    return f"its reconstructions differ from those of {origin.library} by {share} of their norm"


def _scores(each: Shown) -> str:
    declared = each.reference.imported.declared_l0
    measured = [name for name in HEADLINE[1:] if each.figure(name) is not None]
    return sentences.REFERENCE_SCORES.render(
        sae=each.reference.name,
        l0=format_value("l0", each.figure("l0")),
        declared="none declared" if declared is None else f"declared {declared:g}",
        figures=_listed({name: format_value(name, each.figure(name)) for name in measured}),
    )


def _beside(each: Shown) -> str:
    """State the differences from the baseline at the same L0, or that it has no figures there."""
    name, l0 = each.reference.name, format_value("l0", each.figure("l0"))
    if each.beside.why_not:
        return sentences.REFERENCE_OFF.render(sae=name, why=each.beside.why_not)
    signed = {name: format_value(name, value, sign="+") for name, value in each.beside.differences.items()}
    return sentences.REFERENCE_BESIDE.render(sae=name, l0=l0, differences=_listed(signed))


def _listed(figures: Mapping[str, str]) -> str:
    return ", ".join(sentences.FIGURE.render(title=METRICS[name].title, value=value) for name, value in figures.items())
