"""What all events of a study's ledger have."""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

Digests = dict[str, str]  # path in the study's directory -> SHA-256; empty in ledgers from before they were kept


class EventBase(BaseModel):
    """Base of all events. The ledger fills in number and time (UTC) when it records one."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)

    seq: int = 0
    time: datetime = datetime.min.replace(tzinfo=UTC)
    elapsed: float = 0.0  # seconds since this driver opened the ledger, without the machine's sleep
