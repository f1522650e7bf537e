"""Measure how often `agent audit` is right on the corpus; `pytest tests/audit -k rates -s` shows it.

`first` was written with the rules. `second` was written after them; 34 of its 39 false claims were found then, with 3
false alarms on 54 true statements, and the rules were then improved with it. `third` was written after that, and no
rule was changed for it.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from agent.audit import audit

CORPUS = Path(__file__).parent / "audit_corpus"


@dataclass
class Rates:
    """The claims of a part of the corpus by result, each as its file and the beginning of its sentence."""

    found: list[str] = field(default_factory=list)  # false claims that were flagged
    exactly: list[str] = field(default_factory=list)  # of these, with the expected status
    missed: list[str] = field(default_factory=list)
    not_flagged: list[str] = field(default_factory=list)  # true statements
    false_alarms: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)  # of false claims
    kinds_found: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        false, true = len(self.found) + len(self.missed), len(self.not_flagged) + len(self.false_alarms)
        return "\n  ".join(
            [
                f"{len(self.found)} of {false} false claims found ({len(self.exactly)} with the expected status), "
                f"{len(self.false_alarms)} false alarms on {true} true statements",
                "by kind: "
                + ", ".join(f"{kind} {self.kinds_found[kind]}/{n}" for kind, n in sorted(self.kinds.items())),
                *(f"missed: {claim}" for claim in self.missed),
                *(f"false alarm: {claim}" for claim in self.false_alarms),
            ]
        )


def measure(part: str) -> Rates:
    """Audit every file of a part of the corpus and compare the findings with those expected."""
    rates = Rates()
    expected = [
        [cell.strip() for cell in line.split("|", 3)]
        for line in (CORPUS / part / "expected.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    for path in sorted((CORPUS / part).glob("*.txt")):
        if path.name == "expected.txt":
            continue
        flagged = [finding for finding in audit.findings(audit.read(path)) if finding.status != "supported"]
        for name, status, kind, begins in expected:
            if name != path.stem:
                continue
            hits = [finding for finding in flagged if finding.quote.startswith(begins)]
            flagged = [finding for finding in flagged if finding not in hits]
            claim = f"{name}: {begins}"
            if status == "true":
                (rates.false_alarms if hits else rates.not_flagged).append(claim)
                continue
            rates.kinds[kind] += 1
            rates.kinds_found[kind] += bool(hits)
            (rates.found if hits else rates.missed).append(claim)
            rates.exactly += [claim] * any(finding.status == status for finding in hits)
        rates.false_alarms += [f"{path.stem}: {finding.quote}" for finding in flagged]
    return rates
