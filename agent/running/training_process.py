"""One training of a slot: where it is carried out, with which settings, and what it goes on from."""

from dataclasses import dataclass
from pathlib import Path

from agent.ideas import Fixed
from agent.lab.defaults import SAVE_EVERY, SMOKE_TOKENS
from agent.lab.files import remove, write_atomically
from agent.running.jobs import Training
from agent.running.kept_state import StateKeeper
from agent.running.run_files import log_path


@dataclass(frozen=True)
class TrainingProcess:
    """An experiment that is trained into `run_dir`, which is made, with its script beside it."""

    training: Training
    run_dir: Path
    label: str  # in words
    keeper: StateKeeper  # has the state from which it goes on, if any, and takes those that it saves
    remarks: list[str]  # gains what the researcher should know
    smoke: bool = False  # a few steps, timed from the first, with one state saved half-way
    saves: bool = False  # states, from time to time

    @property
    def script(self) -> Path:
        return self.run_dir.with_name("experiment.py")

    @property
    def logs(self) -> tuple[Path, Path]:
        """The files that receive standard output and standard error."""
        return log_path(self.run_dir, "stdout"), log_path(self.run_dir, "stderr")

    def begin(self) -> None:
        """Write the script, and make the directory with the state from which it goes on."""
        remove(self.script)  # which a smoke test may have put a link in the place of
        write_atomically(self.script, self.training.source)
        remove(self.run_dir)
        self.run_dir.mkdir()
        self.keeper.hand_over(self.run_dir)

    def fixed(self, study: Fixed) -> Fixed:
        """Return the settings of the study, with as many tokens as this training has."""
        return study.model_copy(update={"tokens": self.training.tokens or study.tokens})

    def settings(self, fixed: Fixed) -> dict[str, str]:
        """Return the variables that tell the experiment so."""
        saving = {"SAE_AGENT_SMOKE": "1", SAVE_EVERY: str(SMOKE_TOKENS // 2)} if self.smoke else {}
        if not self.smoke and not self.saves:
            saving = {SAVE_EVERY: str(fixed.tokens)}
        return {
            "SAE_AGENT_DRIVEN": "1",
            "SAE_AGENT_FIXED": fixed.model_dump_json(),
            "SAE_AGENT_SEED": str(self.training.seed),
            **saving,
        }
