"""When the notes of a study are written: the text whenever there is something new, figures as often as time allows."""

import time
from collections.abc import Sequence

from agent.report import notes
from agent.report.idea_analysis import Analysis
from agent.report.model_words import Check, unchecked
from agent.report.plots import Figure
from agent.study.state import State
from agent.study.workspace import Study

FIGURES_SHARE = 0.05  # of the time, at most, until the last ones are drawn


class Notebook:
    """The notes of one study, whose text is always that of the figures beside it."""

    def __init__(self, study: Study, analysis: Analysis, check: Check = unchecked) -> None:
        """`check` looks for what results contradict in a language model's words."""
        self.study, self.analysis, self.check = study, analysis, check
        self._text_lags = self._figures_lag = False
        self._figures: Sequence[Figure] | None = None  # as they were drawn last
        self._next_drawing = 0.0

    def refresh(self) -> None:
        """Take note that the ledger has something new."""
        self._text_lags = self._figures_lag = True

    @property
    def is_due(self) -> bool:
        """True if something new can be written now."""
        return self._text_lags or (self._figures_lag and self._may_draw)

    def write(self, state: State, skipped: Sequence[tuple[str, str]], whole: bool = True) -> None:
        """Write the text, and the figures too if it is to be `whole` or they were not drawn for long enough."""
        drawn = None if whole or self._may_draw else self._figures
        start = time.monotonic()
        self._figures = notes.write(self.study, state, skipped, self.analysis, drawn, self.check)
        self._text_lags = False
        if drawn is None:
            now = time.monotonic()
            self._figures_lag, self._next_drawing = False, now + (now - start) / FIGURES_SHARE

    @property
    def _may_draw(self) -> bool:
        return self._figures is None or time.monotonic() >= self._next_drawing
