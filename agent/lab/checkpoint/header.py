"""What the tensors of a checkpoint mean, and the record of where they come from: header.json."""

import re

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.lab.checkpoint import files
from agent.lab.checkpoint.files import HEADER, CheckpointError, flat_message
from agent.lab.checkpoint.graph import GraphError
from agent.lab.results import Imported, Training

FORMAT_VERSION = 1
MAX_D_SAE = 2**20
_EXTRA_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class Header(BaseModel):
    """The meaning of a checkpoint's tensors, and the record of their training, or of the files they come from."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True, serialize_by_alias=True)

    format_version: int = FORMAT_VERSION
    model: str
    hook_name: str
    layer: int
    d_in: int = Field(gt=0)
    d_sae: int = Field(gt=0, le=MAX_D_SAE)
    scale: float = Field(gt=0)  # encode takes the model's activations times this
    groups: dict[str, tuple[int, int]] = {}  # latents [start, end) of a tier or other group
    extra: list[str] = []  # names of the tensors an analysis needs
    training: Training | None = None
    imported: Imported | None = None  # in place of a training
    any_parameter_changed: bool = Field(validation_alias="moved", serialization_alias="moved")  # during training
    architecture: str | None = None  # one of sae_lens.ARCHITECTURES, or None

    @model_validator(mode="after")
    def _consistent(self) -> "Header":
        for name, (start, end) in self.groups.items():
            if not 0 <= start < end <= self.d_sae:
                raise ValueError(f"group {name} is [{start}, {end}), not a range of the {self.d_sae} latents")
        for name in self.extra:
            if not _EXTRA_NAME.fullmatch(name):
                raise ValueError(f"extra tensor {name[:60]!r}: a name is of letters, digits, and _ . -")
        if (self.training is None) == (self.imported is None):
            raise ValueError("it needs the record of a training, or of an import, and not both")
        if self.training and (self.training.d_in, self.training.d_sae) != (self.d_in, self.d_sae):
            raise ValueError("d_in and d_sae differ from those of training")
        return self

    @property
    def text(self) -> str:
        """The training's text, pinned; "" for the installation's own, and for an SAE that was trained elsewhere."""
        return self.training.text if self.training else ""


def checked(header: Header) -> Header:
    """Return a header as it will be read. Raises CheckpointError for one that would not be."""
    try:
        return Header.model_validate_json(header.model_dump_json())
    except ValueError as error:  # pydantic's own errors, and settings that are no JSON
        raise CheckpointError(f"cannot save the checkpoint: its header is wrong: {flat_message(error)}") from None


def parse(content: bytearray) -> Header:
    """Return the header in the content of its file. Raises GraphError."""
    data = files.as_json(content, HEADER)
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise GraphError(
            f"its format is version {str(version)[:20]} and this program reads version {FORMAT_VERSION}; "
            "evaluate it with the program that wrote it, or train again"
        )
    try:
        return Header.model_validate_json(content)
    except ValidationError as error:
        raise GraphError(f"{HEADER}: {flat_message(error)}") from None
