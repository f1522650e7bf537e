"""The events about references: SAEs that were trained elsewhere, which stand beside the baseline."""

from typing import Literal

from agent.lab.verdicts import Verdict
from agent.lab.visible import Line
from agent.study.event_base import Digests, EventBase
from agent.study.records import Reference


class ReferenceImported(EventBase):
    """An SAE from elsewhere was converted into a checkpoint of the study's, from which it is scored."""

    event: Literal["reference_imported"] = "reference_imported"
    reference: Reference
    digests: Digests  # of the checkpoint


class ReferenceScored(EventBase):
    """A reference was scored as runs are, now or by an earlier study. Nothing is decided by it."""

    event: Literal["reference_scored"] = "reference_scored"
    name: Line
    verdict: Verdict
    figures: dict[str, float | None]  # by metric; empty unless the verdict is ok
    errors: dict[Line, Line]  # evaluation family -> why it gave no result
    seconds: float  # 0: from the cache
    digests: Digests
