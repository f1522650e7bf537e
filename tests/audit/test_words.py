"""What a study's results contradict in a language model's words about its runs, and what they leave alone."""

from pathlib import Path

import pytest
from builders import OK, PROPOSAL, core, failed

from agent.audit.known_figures import from_runs
from agent.audit.words import contradictions
from agent.comparison.judgement import Judgement
from agent.lab.results import Comparison, FamilyScores, FinalInfo, Latents, MetricComparison
from agent.study.run_state import RunState
from agent.study.runs import Run

TITLES = [
    "Baseline",
    "Nested prefixes",
    "An unrolled encoder",
    "Learned thresholds",
    "Twice the code",
    "Prefixes again",
]
OUTCOMES = {1: "unconfirmed", 2: "within noise", 4: "within noise", 5: "better"}
FIGURES = {  # of each run; then the difference from the baseline at the run's own L0, and its half width
    0: {"l0": 8.0, "ev": 0.93, "f1": 0.721, "alive": 1.0},
    1: {"l0": 8.0, "ev": (0.91, -0.02, 0.004), "f1": (0.818, 0.097, 0.041), "alive": 1.0},
    2: {"l0": 8.0, "ev": (0.932, 0.002, 0.004), "f1": (0.738, 0.017, 0.041), "alive": (0.74, -0.26, 0.001)},
    4: {"l0": 16.0, "ev": (0.96, 0.001, 0.004), "f1": (0.85, 0.002, 0.041), "alive": 1.0},
    5: {"l0": 8.0, "ev": (0.929, -0.001, 0.004), "f1": (0.859, 0.138, 0.041), "alive": 1.0},
}
NAMES = {"ev": "explained_variance_centered", "f1": "f1", "alive": "alive_fraction"}


def compared(value: float, difference: float, half_width: float) -> MetricComparison:
    return MetricComparison(
        value=value, reference=value - difference, noise=0.01, standard_error=0.01, df=4, half_width=half_width, p=0.01
    )


def results(number: int) -> FinalInfo:
    if number not in FIGURES:
        return failed("nan", "loss was not finite")
    given = FIGURES[number]
    values = {name: each[0] if isinstance(each, tuple) else each for name, each in given.items()}
    differences = {NAMES[name]: compared(*each) for name, each in given.items() if isinstance(each, tuple)}
    return FinalInfo(
        verdict=OK,
        core=core(None, l0=values["l0"], explained_variance_centered=values["ev"]),
        latents=Latents.model_validate(dict.fromkeys(Latents.model_fields, 1.0) | {"alive_fraction": values["alive"]}),
        evaluations={"synthetic": FamilyScores(metrics={"f1": values["f1"]})},
        analysis={"composed_fraction": 0.31},
        comparison=Comparison(levels=[8], seeds=5, metrics=differences) if differences else None,
    )


def study(upto: int, done: bool = True) -> list[Run]:
    proposals = [PROPOSAL.model_copy(update={"title": title}) for title in TITLES]
    return [
        Run(RunState(number, proposals[number]), Path(), results(number) if number < upto or done else None)
        for number in range(upto + 1)
    ]


def evidence(run: int, text: str, done: bool = True) -> list[str]:
    judged = {number: Judgement(outcome) for number, outcome in OUTCOMES.items() if number < run + done}  # pyright: ignore[reportArgumentType]
    return [each.evidence for each in contradictions(text, run, from_runs(study(run, done), judged, "f1", 0.02))]


@pytest.mark.parametrize(
    ("run", "text", "shown"),
    [
        (1, "F1 reached 0.828.", "run 1 has f1 0.818"),
        (1, "EV rises to 0.91.", "0.91 in run 1, 0.93 in the baseline"),
        (1, "Reconstruction is better than the baseline's.", "0.91 in run 1"),
        (2, "The unrolled encoder improves F1.", "within the noise"),
        (1, "Explained variance is unchanged.", "0.91 in run 1"),
        (1, "The difference in EV is indistinguishable from noise.", "0.91 in run 1"),
        (2, "F1 is higher than in run 1.", "F1 is 0.738 in run 2, 0.818 in run 1"),
        (2, "Unrolling beats nested prefixes on F1.", "F1 is 0.738 in run 2, 0.818 in run 1"),
        (5, "F1 is clearly better than in run 4.", "more than 10% apart: they do not compare"),
        (5, "Explained variance is 0.919, up from 0.91 in run 1.", "run 5 has explained_variance_centered 0.929"),
        (3, "This run improves F1.", "run 3 has no results"),
        (3, "Learned thresholds reach a higher F1.", "run 3 has no results"),
        (2, "F1 is the best of all runs.", "f1: the baseline 0.721"),
        (2, "No latents died.", "alive_fraction is 0.74 in run 2"),
        (2, "Only 12% of the latents are dead.", "0.26"),
        (2, "The idea works.", "run 2 is within noise of the baseline on the primary metric"),
        (2, "This pays off.", "within noise of the baseline"),
        (1, "The gain has been confirmed by fresh seeds.", "run 1 is unconfirmed on the primary metric"),
        (1, "Nesting costs nothing.", "explained variance of run 1 differs by -0.02 ± 0.004"),
        (1, "It comes at no price in explained variance.", "explained variance of run 1 differs by -0.02 ± 0.004"),
        (5, "There is no gain.", "run 5 is better on the primary metric"),
        (5, "The composed fraction is 0.41.", "run 5 has composed_fraction 0.31"),
        (5, "F1 differs by +0.138 ± 0.041 from the baseline at the same L0, which is within noise.", "0.859 in run 5"),
        (2, "The gain in F1 is larger than the smallest effect.", "differs by 0.017, the smallest effect is 0.02"),
        (1, "The gain in F1 stays below our threshold of 0.02.", "differs by 0.097, the smallest effect is 0.02"),
        (1, "Fresh seeds bear out the gain in F1.", "run 1 is unconfirmed"),
        (5, "The improvement did not survive fresh seeds.", "run 5 is better"),
        (5, "The gain is smaller than that of run 1.", "+0.138 in run 5 and by +0.097 in run 1"),
        (2, "It gains more F1 than nested prefixes did.", "+0.017 in run 2 and by +0.097 in run 1"),
        (2, "Unrolling holds on to the gains of run 1.", "+0.017 in run 2 and by +0.097 in run 1"),
        (2, "Half the latents are dead.", "alive_fraction is 0.74 in run 2"),
        (5, "Dead latents were never an issue in this study.", "alive_fraction is 0.74 in run 2"),
        (1, "Explained variance does not differ from the baseline's.", "0.91 in run 1"),
        (5, "Explained variance is as low as in run 1.", "0.929 in run 5, 0.91 in run 1"),
        (2, "It pays off in explained variance.", "explained variance of run 2 differs by +0.002 ± 0.004"),
        (2, "It is a clear gain in explained variance.", "explained variance of run 2 differs by +0.002 ± 0.004"),
        (1, "A clean win: every metric moves the right way.", "explained variance of run 1 differs by -0.02 ± 0.004"),
        (1, "There is no loss of explained variance.", "explained variance of run 1 differs by -0.02 ± 0.004"),
        (5, "The hypothesis is refuted.", "run 5 is better"),
        (2, "This run is better than run 1.", "+0.017 in run 2, +0.097 in run 1"),
        (2, "This is the best run so far.", "+0.097 in run 1, +0.017 in run 2"),
        (5, "All four changes improved F1.", "0.738 in run 2"),
        (5, "None of the changes improved F1.", "0.818 in run 1"),
        (5, "Only run 1 improved F1.", "0.859 in run 5"),
        (5, "F1 reaches 0.859, yet the baseline is still ahead.", "0.859 in run 5"),
        (3, "An F1 of 0.871 sets a new best.", "no"),
        (4, "At equal sparsity, K = 16 explains more variance.", "within the noise"),
        (1, "The difference in F1 is too small to matter.", "run 1 is unconfirmed"),
    ],
)
def test_a_false_sentence_is_found_with_its_evidence(run: int, text: str, shown: str):
    found = evidence(run, text)
    assert len(found) == 1
    assert shown.lower() in found[0].lower()


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (1, "F1 rises from 0.721 to 0.818, though this gain has not yet been confirmed by fresh seeds."),
        (1, "It costs about 0.02 of explained variance."),
        (1, "The gain is not free: EV drops by 0.02."),
        (1, "Run 1's explained variance of 0.91 is below the baseline's 0.93."),
        (2, "F1 is nominally higher, within noise."),
        (2, "The idea does not pay off."),
        (2, "A quarter of the dictionary dies, 26% of the latents."),
        (3, "The training broke off, so nothing can be said about thresholds."),
        (4, "F1 is 0.85 because twice as many latents fire, and at the same L0 there is no difference."),
        (4, "No effect at matched L0."),
        (5, "F1 is the highest of all runs, and explained variance is within noise."),
        (5, "It costs nothing any more, as the loss of explained variance that run 1 had is gone."),
        (5, "F1 differs by +0.138 ± 0.041 from the baseline at the same L0 (better, confirmed by fresh seeds)."),
        (5, "In run 5 F1 differs by +0.041 ± 0.058 from that of run 1."),
        (5, "F1 may improve with more steps, and whether the idea works elsewhere is open."),
        (5, "F1 is high, and the composed fraction is 0.31, the mean loss of a tier is 0.2."),
        (5, "K starts at 24 active latents, and the first prefix has 64 of them."),
        (5, "A prefix must reconstruct alone, so it takes up the most frequent features."),
        (1, "F1 gains 0.097, far more than the smallest effect of 0.02."),
        (2, "The gain in F1 is below our threshold."),
        (1, "The gain still has to be confirmed by fresh seeds."),
        (5, "The gain is larger than that of run 1, and fresh seeds bear it out."),
        (5, "It loses less explained variance than nested prefixes did."),
        (2, "A quarter of the latents are dead, and all others stay alive."),
        (1, "Nested prefixes do not pay off in explained variance."),
        (1, "F1 moves the right way, explained variance does not."),
        (5, "The hypothesis is not refuted."),
        (2, "It is not better than run 1."),
        (5, "This is the best run so far, and it beats every earlier run on F1."),
        (5, "Not every change improved F1."),
        (5, "Only run 2 lost latents."),
        (5, "The loss of explained variance shrank from 0.02 to 0.001."),
        (5, "Compared with run 1, nothing gets worse."),
        (4, "Once L0 is matched, the improvement disappears."),
        (2, "Without an auxiliary loss the latents die."),
        (5, "F1 and explained variance point the same way as in no other run."),
    ],
)
def test_a_true_or_open_sentence_is_left_alone(run: int, text: str):
    assert evidence(run, text) == []


def test_noise_of_the_primary_metric_is_that_of_its_outcome():
    judged = {1: Judgement("within noise")}
    known = from_runs(study(1), judged, "f1")
    assert contradictions("F1 is within noise of the baseline.", 1, known) == []
    assert len(contradictions("F1 improved.", 1, known)) == 1


def test_a_plan_is_judged_by_the_runs_before_it():
    assert evidence(2, "Nested prefixes raised F1, so the encoder should raise it further.", done=False) == []
    assert evidence(2, "Since run 1 lost F1, we try another encoder.", done=False) != []


def test_only_the_false_sentence_of_a_text_is_given_as_it_stands():
    text = "F1 is 0.818, well above the baseline.\n\nNesting costs nothing. The first prefix has 64 latents."
    found = contradictions(text, 1, from_runs(study(1), {1: Judgement("unconfirmed")}))
    assert [each.sentence for each in found] == ["Nesting costs nothing."]


def test_later_runs_do_not_change_what_a_text_about_an_earlier_one_may_say():
    judged = {1: Judgement("unconfirmed"), 5: Judgement("better")}
    assert contradictions("F1 is the highest so far.", 1, from_runs(study(5), judged)) == []
