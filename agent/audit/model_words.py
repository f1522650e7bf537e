"""Check what notes quote of a language model: no claims of the notes, but contradicted sentences must be marked."""

from collections.abc import Iterator
from dataclasses import replace

from agent.audit.finding import Finding
from agent.audit.judge import ProseSentence
from agent.audit.known_figures import KnownRuns
from agent.audit.notes_reader import ModelWords, Notes, Statement
from agent.audit.quantities import QUANTITIES
from agent.audit.words import contradictions
from agent.report.sentences import TITLES


def check(notes: Notes, known: KnownRuns) -> Iterator[Finding]:
    """Find contradicted sentences without a mark, and marks of a sentence that is not there or not contradicted."""
    known = _compared_only(known)
    for words in notes.model_words:
        run = words.run if words.run is not None else max(known.runs, default=0)
        found = contradictions(words.text, run, known)
        for each in found:
            if not any(_same(each.sentence, quoted) for _, quoted in words.marks):
                evidence = f"{each.evidence}; it is not marked as contradicted"
                yield Finding(words.line, words.run, each.sentence, "contradicted", evidence)
        for line, quoted in words.marks:
            alone = contradictions(quoted, run, known)  # of an item of a list, which notes join with the next
            evidence = [each.evidence for each in [*found, *alone] if _same(each.sentence, quoted)]
            if quoted not in words.text:
                yield Finding(line, words.run, quoted, "unsupported", "the model's words have no such sentence")
            elif evidence:
                yield Finding(line, words.run, quoted, "supported", evidence[0])
            elif _is_decided(words, quoted, run, known):
                yield Finding(line, words.run, quoted, "unsupported", "the results do not contradict it")


def _same(sentence: str, quoted: str) -> bool:
    return quoted in sentence or sentence in quoted


def _is_decided(words: ModelWords, quoted: str, run: int, known: KnownRuns) -> bool:
    """Return True if a sentence would be found contradicted if it were: notes do not have all that results have."""
    if any(each.info for each in known.runs.values()):
        return True
    results = list(ProseSentence(Statement(words.line, run, "", quoted), None, known).check())
    return bool(results) and all(status == "supported" for status, _ in results)


def _compared_only(known: KnownRuns) -> KnownRuns:
    """Leave out the figures of which notes give no difference from the baseline: they may be within the noise."""
    runs = dict(known.runs)
    for number, run in known.runs.items():
        if run.differences and not run.info:
            compared = {TITLES.get(title) for title in run.differences}
            apart = {path for quantity in QUANTITIES if quantity.follows_l0 for path in quantity.paths(run.figures)}
            figures = {path: value for path, value in run.figures.items() if path in compared or path not in apart}
            runs[number] = replace(run, figures=figures)
    return known.of(runs)
