"""How often `agent audit` is right: python benchmarks/audit_corpus.py, on tests/audit_corpus.

`first` was written with the rules; `second` after them, and no rule was changed for it.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from agent import audit

CORPUS = Path(__file__).parent.parent / "tests" / "audit_corpus"


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
        return (
            f"{len(self.found)} of {false} false claims found ({len(self.exactly)} with the expected verdict), "
            f"{len(self.false_alarms)} false alarms on {true} true statements"
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


def main() -> None:
    for part in sorted(path.name for path in CORPUS.iterdir() if path.is_dir()):
        rates = measure(part)
        print(f"{part}: {rates}")
        print(
            "  by kind: " + ", ".join(f"{kind} {rates.kinds[kind]}/{n}" for kind, n in sorted(rates.all_kinds.items()))
        )
        for title, said in (("missed", rates.missed), ("false alarm", rates.false_alarms)):
            print("".join(f"  {title}: {each}\n" for each in said), end="")
        wrong = sorted(set(rates.found) - set(rates.exactly))
        print("".join(f"  other verdict: {each}\n" for each in wrong), end="")


if __name__ == "__main__":
    main()
