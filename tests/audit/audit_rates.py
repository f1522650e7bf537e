"""How often `agent audit` is right on tests/audit_corpus: pytest tests/test_audit.py -k rates -s shows it.

`first` was written with the rules. `second` was written after them; 34 of its 39 false claims were found then, with 3
false alarms on 54 true statements, and the rules were mended by it since. `third` was written after that, and no rule
was changed for it.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from agent.audit import audit

CORPUS = Path(__file__).parent / "audit_corpus"


@dataclass
class Rates:
    """What became of the claims of a part of the corpus, each as file and how its sentence begins."""

    found: list[str] = field(default_factory=list)  # false claims that were flagged
    exactly: list[str] = field(default_factory=list)  # of these, with the expected verdict
    missed: list[str] = field(default_factory=list)
    quiet: list[str] = field(default_factory=list)  # true claims, supported or not taken for claims
    false_alarms: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)  # found, by kind
    all_kinds: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        false, true = len(self.found) + len(self.missed), len(self.quiet) + len(self.false_alarms)
        return "\n  ".join(
            [
                f"{len(self.found)} of {false} false claims found ({len(self.exactly)} with the expected verdict), "
                f"{len(self.false_alarms)} false alarms on {true} true statements",
                "by kind: " + ", ".join(f"{kind} {self.kinds[kind]}/{n}" for kind, n in sorted(self.all_kinds.items())),
                *(f"missed: {each}" for each in self.missed),
                *(f"false alarm: {each}" for each in self.false_alarms),
            ]
        )


def measure(part: str) -> Rates:
    """Audit every file of a part of the corpus and hold the findings against what is expected."""
    rates = Rates()
    expected = [
        [cell.strip() for cell in line.split("|", 3)]
        for line in (CORPUS / part / "expected.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    for path in sorted((CORPUS / part).glob("*.txt")):
        if path.name == "expected.txt":
            continue
        flagged = [each for each in audit.findings(audit.read(path)) if each.verdict != "supported"]
        for name, verdict, kind, begins in expected:
            if name != path.stem:
                continue
            hits = [each for each in flagged if each.quote.startswith(begins)]
            flagged = [each for each in flagged if each not in hits]
            said = f"{name}: {begins}"
            if verdict == "true":
                (rates.false_alarms if hits else rates.quiet).append(said)
                continue
            rates.all_kinds[kind] += 1
            rates.kinds[kind] += bool(hits)
            (rates.found if hits else rates.missed).append(said)
            rates.exactly += [said] * any(each.verdict == verdict for each in hits)
        rates.false_alarms += [f"{path.stem}: {each.quote}" for each in flagged]
    return rates
