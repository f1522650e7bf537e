"""What results contradict in the words that a language model wrote about a run."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from agent.audit import comparisons, effects, latents, quantified, ranks, verdicts, word_lists
from agent.audit.claims import Direction, Figure
from agent.audit.clauses import BASELINE, PREVIOUS, clauses
from agent.audit.judge import Claim, ProseSentence
from agent.audit.known_figures import APART, KnownRun, KnownRuns, by_metric, from_runs
from agent.audit.notes_reader import Statement
from agent.audit.rounding import agrees
from agent.audit.word_lists import pattern
from agent.report.prose import Facts
from agent.report.splitting import split_sentences

_STEM = re.compile(r"([a-z]{4,}?)(?:ing|ed|es|s)?")
_IN_ANY_TITLE = pattern(  # says nothing of which run is meant
    r"""active baseline dead each features? latents? learn\w* less loss many more over rate runs? size steps? that three
    twice two with without"""
)
_COMPARED_WITH = re.compile(
    r"\b(?P<than>than|beats?|(?:superior|inferior|loses) to|falls short of|ahead of|behind|"
    r"outperform\w*|versus|vs\.?|compared (?:to|with)|relative to|against) "
    r"(?P<that>(?:that of |those of |with |in |for )?)"
    r"(?P<what>(?:(?:the|plain|an?) )?(?:[\w-]+ ){0,2}[\w-]+)",
    re.IGNORECASE,
)
_REPHRASED = (  # adjectives and verbs for a direction of a metric
    (re.compile(r"\bexplain(?:s|ed|ing)? (more|less) (?:of the )?variance\b", re.IGNORECASE), "explained variance"),
    (re.compile(r"\b(more|less) unique\b", re.IGNORECASE), "uniqueness"),
    (re.compile(r"\badd(?:s|ed|ing)? (more|less) loss\b", re.IGNORECASE), "loss added"),
    (re.compile(r"\b(more|fewer) latents? (?:(?:stay|remain|are|keep) )?alive\b", re.IGNORECASE), "alive fraction"),
    (re.compile(r"\b(more|fewer) latents? (?:die|died|are dead)\b", re.IGNORECASE), "dead latents"),
    (re.compile(r"\b(more|less) loss is added\b", re.IGNORECASE), "loss added"),
)
OPENING = 4  # words of a sentence that name what it is about
_NOT_ALL = re.compile(r"\bnot (?:all|every|each)\b", re.IGNORECASE)
_LEFT_OUT = re.compile(r"(?:no|without|remov\w+|dropp\w+|leav\w+)\b", re.IGNORECASE)
_OF_THIS = pattern("this here it now we")
_THE_RUN = re.compile(r"\b(?:this|the) run\b|\AIt\b", re.IGNORECASE)
_DIRECTIONS = {"more": "higher", "less": "lower", "fewer": "lower"}
_FAILED = pattern(r"fail\w* broke crash\w* nan not~finite abort\w* diverged untested never no~results? nothing unknown")
_FINISHED = pattern(
    r"(?:finish|complet|converg|reproduc|confirm|prove|reach|achiev)\w* shows showed trained~(?:well|stably)"
)


@dataclass(frozen=True)
class Contradiction:
    """A sentence, and the figures that say otherwise."""

    sentence: str
    evidence: str


def contradictions(text: str, run: int, known: KnownRuns) -> list[Contradiction]:
    """Return the sentences of a text about a run that the results up to this run contradict.

    A difference claimed where there is noise, and a comparison of runs whose L0 are more than MATCH apart, are
    contradicted too. A sentence that names what another run changed may be about either; then the results of both must
    contradict it.
    """
    known, before, found = _until(run, by_metric(known)), None, []
    for sentence in split_sentences(text):
        words = word_lists.AT_SAME_L0.sub(_unless_rendered, _rephrased(_with_runs_named(sentence, run, known)))
        subjects = _subjects(sentence, run, known)
        like_for_like = bool(word_lists.AT_SAME_L0.search(sentence)) and not word_lists.COST.search(sentence)
        by_subject = [
            dict(_contradicted(ProseSentence(Statement(0, subject, "", words), before, known), like_for_like))
            for subject in subjects
        ]
        evidence = [why for claim, why in by_subject[0].items() if all(claim in each for each in by_subject)]
        if evidence:
            found.append(Contradiction(sentence, evidence[0]))
        before = Statement(0, run, "", sentence)
    return found


def _until(run: int, known: KnownRuns) -> KnownRuns:
    """Leave the runs that a text about this one can know."""
    return known.of({number: each for number, each in known.runs.items() if number <= run})


def _subjects(sentence: str, run: int, known: KnownRuns) -> list[int]:
    """Return the runs that a sentence without the number of a run may be about."""
    about = _COMPARED_WITH.sub(" ", sentence)
    stems = _stems(about)
    rivals = {number for match in _COMPARED_WITH.finditer(sentence) for number in _compared(match, run, known)}
    named = [n for n, each in sorted(known.runs.items()) if n and n not in rivals and _stems(each.title) & stems]
    own = known.runs.get(run)
    opens_with = _stems(" ".join(about.split()[:OPENING]))
    others = [
        number
        for number in named
        if number != run
        and _stems(known.runs[number].title) & opens_with
        and not _LEFT_OUT.match(known.runs[number].title)
    ]
    if own and others and not stems & _stems(own.title) and not _OF_THIS.search(sentence):
        return others
    has_result = own is not None and own.counts
    return list(dict.fromkeys([run, *named])) if has_result or not named else named


def _stems(text: str) -> set[str]:
    bare = _IN_ANY_TITLE.sub(" ", word_lists.WAY.sub(" ", text)).lower().replace("ies", "y")
    return {match[1] for word in re.findall(r"[a-z]+", bare) if (match := _STEM.fullmatch(word))}


def _rephrased(sentence: str) -> str:
    """Put a metric's name and a direction in place of an adjective or a verb that means it."""
    for meant, metric in _REPHRASED:
        sentence = meant.sub(lambda said, metric=metric: f"{_DIRECTIONS[said[1].lower()]} {metric}", sentence)
    return sentence


def _unless_rendered(at_same_l0: re.Match[str]) -> str:
    """Leave out that two sides have the same L0, which is no claim, but not from a rendered difference."""
    before, after = at_same_l0.string[: at_same_l0.start()], at_same_l0.string[at_same_l0.end() :]
    rendered = re.search(r"±[^,;]*$", before) or after.startswith(" (difference")
    return at_same_l0.group() if rendered else ""


def _with_runs_named(sentence: str, run: int, known: KnownRuns) -> str:
    """Put the number of a run before what it changed, where a sentence compares with it by that."""

    def named(match: re.Match[str]) -> str:
        runs = _compared(match, run, known)
        return f"{match['than']} {match['that']}run {runs[0]} {match['what']}" if len(runs) == 1 else match.group()

    return _COMPARED_WITH.sub(named, sentence)


def _compared(match: re.Match[str], run: int, known: KnownRuns) -> list[int]:
    """Return the other runs whose titles name what a run is compared with."""
    stems = _stems(match["what"])
    return [number for number, each in known.runs.items() if number != run and stems & _stems(each.title)]


def _contradicted(sentence: ProseSentence, like_for_like: bool) -> Iterator[tuple[Claim, str]]:
    """Yield each claim that is contradicted, and the evidence. `like_for_like`: it is said to hold at the same L0."""
    run = sentence.known.run(sentence.run)
    if run and not run.counts and _speaks_of(sentence.text, run) and _claims_a_result(sentence):
        yield "a result", f"run {run.number} has no results"
    for reader in (verdicts, latents, effects, ranks, quantified):
        yield from reader.contradicted(sentence)
    for figure in sentence.read().figures:
        if figure.subject is None and run and not run.counts and _is_nobodys(figure, sentence):
            yield figure, f"no run has {figure.quantity.name} {figure.number}"
    for claim, (status, evidence) in sentence.check_claims():
        if isinstance(claim, Direction) and claim.reference == PREVIOUS and evidence.endswith(APART):
            continue  # further than what it started from, which need not be the run before
        if isinstance(claim, Direction) and claim.negated and _NOT_ALL.search(sentence.text):
            continue
        if isinstance(claim, Figure) and run and _is_loss_of_a_metric(claim, run):
            continue
        if status == "contradicted" or (status == "unsupported" and _is_unlike(sentence, evidence, like_for_like)):
            yield claim, evidence


def _is_nobodys(figure: Figure, sentence: ProseSentence) -> bool:
    """Return True if a value with decimals is that of no run, though its quantity was measured."""
    values = [run.figures_of(figure.quantity, figure.wording) for run in sentence.known.runs.values()]
    found = [sentence.matching_path(figure, each) for each in values if each]
    return figure.kind == "value" and "." in figure.number and bool(found) and not any(found)


def _is_loss_of_a_metric(figure: Figure, run: KnownRun) -> bool:
    """Return True for `a loss of 0.02` that is the difference of a metric, not the training loss."""
    differences = [each.difference for each in run.differences.values()]
    return figure.wording.lower() == "loss" and any(agrees(figure.digits, abs(each)) for each in differences)


def _is_unlike(sentence: ProseSentence, evidence: str, like_for_like: bool) -> bool:
    """Return True for a difference within the noise or between runs of unlike L0, which the sentence does not admit."""
    known, text = sentence.known, sentence.text
    of_section = sentence.run in known.runs and BASELINE in known.runs
    apart = evidence.endswith(APART) or (of_section and known.why_l0_apart(sentence.run or 0, BASELINE))
    if apart and not like_for_like and word_lists.MENTIONS_L0.search(text):
        return False
    admitted = word_lists.ADMITS_NOISE.search(word_lists.BEYOND_NOISE.sub("", text))
    noise = evidence.endswith(comparisons.WITHIN_NOISE) and not admitted
    return noise or evidence.endswith(APART)


def _speaks_of(sentence: str, run: KnownRun) -> bool:
    return bool(_THE_RUN.search(sentence) or _stems(sentence) & _stems(run.title))


def _claims_a_result(sentence: ProseSentence) -> bool:
    """Return True if a sentence says what came out of the run of its section, or that it went well."""
    if _FAILED.search(sentence.text):
        return False
    reading = sentence.read()
    own = [claim for claim in (*reading.directions, *reading.figures) if claim.subject is None]
    return bool(own) or any(_FINISHED.search(clause.text) for clause in clauses(sentence.text))


def check(text: str, run: int, facts: Facts) -> list[Contradiction]:
    """Return what the results of a study contradict in a text about a run."""
    known = from_runs(facts.runs, facts.judged, facts.primary, facts.smallest_effect)
    return contradictions(text, run, known)
