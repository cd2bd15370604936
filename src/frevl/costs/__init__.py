"""What a pair costs on this machine: time, processor time, operations, energy; a file a theme.

`frevl.efficiency.bench` calls them one after the other and gathers their records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["NOT_MEASURED", "Record", "Say"]

NOT_MEASURED = "not measured"

Say = Callable[[str], object]


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes:
        part: Theme: ``machine``, ``stages``, ``fusion``, ``scaling``, ``comparison``, ``break-even``, ``energy``,
            ``goals`` or ``profile``.
        name: What was measured, in words.
        value: The number (the median over rounds), or words such as ``not measured``.
        unit: Of the value.
        spread: ``low``, ``high`` and ``rounds``, in the same unit; None for what does not vary.
        ratio: The number against which `limit` is held, if there is one.
        limit: Least ratio that we promise, or None.
        details: Further figures: ``flops``, ``bytes``, ``batch``, ``cpu_seconds``, ...
    """

    part: str
    name: str
    value: float | str
    unit: str
    spread: dict[str, float] | None = None
    ratio: float | None = None
    limit: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the limit is reached; None where there is none."""
        return None if self.ratio is None or self.limit is None else self.ratio >= self.limit

    def json(self, hardware: dict[str, Any]) -> dict[str, Any]:
        """Return the record of `frevl bench --json`."""
        named = {name: value for name, value in vars(self).items() if name != "details"}
        return {**named, "met": self.met, "hardware": hardware, **self.details}
