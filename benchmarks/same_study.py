"""Compare what two studies recorded, to the last digit.

    python benchmarks/same_study.py [--figures] RUNS/STUDY_A RUNS/STUDY_B

Reads the events.jsonl of each study, and the final_info.json of every run, attempt, fresh seed and baseline. Leaves out
what belongs to the moment of a study (times, processes, its name) and the fingerprint of the code that ran it.
With --figures it leaves out wording too (titles, descriptions, evidence, the source with its comments), and
compares what was measured: every number, verdict, checkpoint hash and name.

Prints each difference as PATH: VALUE_A | VALUE_B and exits with 1, or prints one line that counts what is equal.

Imports nothing of agent, so that it compares studies of different versions.
"""

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

OF_THE_MOMENT = frozenset({"seq", "time", "elapsed", "seconds", "evaluation_seconds", "check", "pid", "host"})
FINGERPRINT = frozenset({"ground", "fingerprint", "lab", "lab_hash"})
LEFT_OUT = OF_THE_MOMENT | FINGERPRINT  # wherever a field has one of these names
WORDING = frozenset(
    {"title", "description", "hypothesis", "why", "evidence", "warnings", "source", "expected", "remark"}
)
STAMP = re.compile(r"\b\d{8}_\d{6}_")  # that a study's name begins with
RESULTS = ("run_*/final_info.json", "baseline_*/final_info.json")
SHOWN = 100  # characters of a value, from shortly before the first that differs


class Missing:
    """Stand for a value that one of two records does not have."""

    def __repr__(self) -> str:
        return "(missing)"


MISSING = Missing()


@dataclass(frozen=True)
class Recorded:
    """What a study left on disk."""

    events: list[dict[str, Any]]
    results: dict[str, dict[str, Any]]  # by the path in the study's directory


def read(study: Path, left_out: frozenset[str]) -> Recorded:
    """Read a study, without fields of the names `left_out`. Raise OSError or ValueError where a file cannot be read."""
    lines = (study / "events.jsonl").read_text().split("\n")[:-1]  # what follows the last newline is torn or empty
    paths = sorted(path for pattern in RESULTS for path in study.glob(pattern))
    results = {str(path.relative_to(study)): parse(path.read_text(), study, left_out) for path in paths}
    return Recorded([parse(line, study, left_out) for line in lines], results)


def parse(text: str, study: Path, left_out: frozenset[str]) -> dict[str, Any]:
    """Parse a JSON object without what is left out, and without the study's directory in its texts."""
    text = STAMP.sub("", text.replace(f"{study}{os.sep}", ""))
    return without(json.loads(text, parse_constant=str), left_out)


def without(value: Any, names: frozenset[str]) -> Any:
    """Return the value without the fields of these names, at any depth."""
    if isinstance(value, dict):
        return {name: without(each, names) for name, each in value.items() if name not in names}
    return [without(each, names) for each in value] if isinstance(value, list) else value


def differences(a: Any, b: Any, path: str) -> Iterator[str]:
    """Yield a line for each place where two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys([*a, *b]):
            yield from differences(a.get(name, MISSING), b.get(name, MISSING), f"{path}.{name}")
    elif isinstance(a, list) and isinstance(b, list):
        for index, (first, second) in enumerate(zip_longest(a, b, fillvalue=MISSING)):
            yield from differences(first, second, f"{path}[{index}]")
    elif type(a) is not type(b) or a != b:
        yield f"{path}: {' | '.join(shown(a, b))}"


def shown(a: Any, b: Any) -> Iterator[str]:
    """Yield two values as text, long ones from shortly before the first character that differs."""
    texts = [repr(value) if value is MISSING else json.dumps(value, ensure_ascii=False) for value in (a, b)]
    same = next((i for i, pair in enumerate(zip(*texts, strict=False)) if len(set(pair)) > 1), min(map(len, texts)))
    start = max(same - SHOWN // 4, 0) if max(map(len, texts)) > SHOWN else 0
    for text in texts:
        yield f"{'...' * (start > 0)}{text[start : start + SHOWN]}{'...' * (len(text) > start + SHOWN)}"


def of_events(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the differences of two ledgers. Events of one kind and run are compared; others stand in one alone."""
    kinds = [[f"{event['event']} {event.get('run', '')}".strip() for event in events] for events in (a, b)]
    for tag, a_start, a_end, b_start, b_end in difflib.SequenceMatcher(None, *kinds, autojunk=False).get_opcodes():
        if tag == "equal":
            for i, j in zip(range(a_start, a_end), range(b_start, b_end), strict=True):
                yield from differences(a[i], b[j], f"events.jsonl:{i + 1} {a[i]['event']}")
            continue
        yield from (f"events.jsonl:{i + 1} {kinds[0][i]}: recorded | (missing)" for i in range(a_start, a_end))
        yield from (f"events.jsonl:{j + 1} {kinds[1][j]}: (missing) | recorded" for j in range(b_start, b_end))


def count_figures(value: Any) -> int:
    """Count the numbers in a JSON value."""
    if isinstance(value, dict | list):
        return sum(map(count_figures, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs=2, type=Path, metavar="STUDY", help="a study's directory under runs/")
    parser.add_argument("--figures", action="store_true", help="leave out wording")
    args = parser.parse_args()
    try:
        a, b = (read(study.resolve(), LEFT_OUT | WORDING if args.figures else LEFT_OUT) for study in args.studies)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    found = list(of_events(a.events, b.events))
    for path in sorted(a.results.keys() | b.results.keys()):
        if path in a.results and path in b.results:
            found += differences(a.results[path], b.results[path], path)
        else:
            found.append(f"{path}: {' | '.join('there' if path in each.results else '(missing)' for each in (a, b))}")
    for difference in found:
        print(difference)
    if found:
        sys.exit(1)
    figures = count_figures(a.events) + count_figures(list(a.results.values()))
    print(f"equal to the last digit: {len(a.events)} events and {len(a.results)} results, with {figures} figures")


if __name__ == "__main__":
    main()
