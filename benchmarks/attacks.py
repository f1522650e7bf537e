"""Carry out the attacks on a study, each in a copy of this checkout, and print what became of them as a table.

    python benchmarks/attacks.py [--rows 2,7,34] [--sandbox auto,off] [--scratch DIR] [--cache DIR]

Every attack is tried for real, by an experiment in a study with its own home, cache, keys and servers on loopback.
succeeds: done, and nothing said; noticed: done, and a verdict, outcome, line or end says so; stopped: it did not work;
breaks: the driver hangs, or ends with a traceback; no trial: the experiment did not come to attack.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from attacking import encoders, inputs, left_files, machine, planted_code, records, rewards, trusted
from attacking.attack import Attack, Row, carry_out
from attacking.trial import REPOSITORY, Calm, calm_study

KINDS = (machine, planted_code, records, left_files, inputs, encoders, rewards, trusted)
ATTACKS: dict[str, Attack] = {each.number: each for kind in KINDS for each in kind.ATTACKS}


def kinds_of_sandbox() -> list[str | None]:
    """Return the values of --sandbox to try; None alone where `agent run` has no such option."""
    command = [sys.executable, "-P", "-m", "agent", "run", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout
    return ["off", "auto"] if "--sandbox" in help_text else [None]


def empty(folder: Path) -> Path:
    """Remove what is left of an earlier trial."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def print_table(rows: dict[str, list[Row]], kinds: list[str | None]) -> None:
    """Print a row for each attack and a column for each kind of sandbox."""
    columns = " | ".join(f"sandbox {kind}" if kind else "result" for kind in kinds)
    print(f"\n| # | attack | {columns} | done: what was said |")
    print(f"| --- | --- | {'--- | ' * len(kinds)}--- |")
    for number, tried in sorted(rows.items(), key=lambda row: in_order(row[0])):
        words = [f"{row.done}: {row.said}" if row.done else row.said for row in tried]
        text = " // ".join(dict.fromkeys(word[:300] for word in words if word)).replace("|", "/").replace("\n", " ")
        print(f"| {number} | {tried[0].title} | {' | '.join(row.result for row in tried)} | {printable(text)} |")


def in_order(number: str) -> tuple[str, int, str]:
    """Return what rows are sorted by: 2, 2b, 11, R1."""
    kind, digits = ("R", number[1:]) if number.startswith("R") else ("", number)
    return kind, int("".join(filter(str.isdigit, digits))), number


def printable(text: str) -> str:
    """Return a text with what is no character for a terminal made visible."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="numbers with commas between; all if not given")
    parser.add_argument("--sandbox", default="", help="kinds to try with commas between; all that there are")
    parser.add_argument("--scratch", type=Path, help="keep the trials in this folder")
    parser.add_argument("--cache", type=Path, help="begin with a copy of this cache, as an earlier call has left it")
    args = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has had them ignored: nothing outlives this
        signal.signal(number, signal.default_int_handler)
    start, scratch = time.monotonic(), args.scratch or Path(tempfile.mkdtemp(prefix="trials-"))
    kinds = args.sandbox.split(",") if args.sandbox else kinds_of_sandbox()
    rows: dict[str, list[Row]] = {}
    calm: dict[tuple[str, str | None], Calm] = {}
    for number in args.rows.split(",") if args.rows else ATTACKS:
        for kind in kinds:
            folder = scratch / f"{number}-{kind}"
            lab = ATTACKS[number].lab
            if (lab, kind) not in calm:
                calm[lab, kind] = calm_study(empty(scratch / f"calm {lab} {kind}"), lab, kind, args.cache)
            row = carry_out(ATTACKS[number], empty(folder), kind, calm[lab, kind])
            rows.setdefault(number, []).append(row)
            words = f"{printable(row.done)[:300]} -- {printable(row.said)[:300]}"
            print(f"{number} {kind or ''} {row.result} ({row.seconds:.0f} s): {words}", flush=True)
    print_table(rows, kinds)
    print(f"\n{len(rows)} attacks, {time.monotonic() - start:.0f} s")
    if not args.scratch:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
