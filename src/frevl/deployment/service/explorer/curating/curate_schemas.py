"""Request and response bodies for curations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from frevl.deployment.service.explorer.label_schemas import By, RequestId
from frevl.deployment.service.schemas import Body
from frevl.store.labels.entries import LONGEST_NAME

__all__ = [
    "CurationResponse",
    "CurationsResponse",
    "DecideRequest",
    "DecidedResponse",
    "DuplicatesResponse",
    "JudgedResponse",
    "RemovedResponse",
    "StartCurationRequest",
    "UndecideRequest",
    "UndecidedResponse",
]

Of = Annotated[str | None, Field(max_length=4096, description="Name of the curation; defaults to the first one.")]
LineFilter = Literal["match", "label", "blind", "text", "image", "repeated"]
Say = Literal["drop", "keep", "fix"]
_Said = Annotated[dict[str, str], Field(description="Everyone's decisions: drop, keep or fix.")]


class JobRecord(Body):
    """A curation started from the page."""

    name: str
    state: Literal["running", "done", "failed", "stopped"]
    said: str = Field(description="The last line it printed, or why it failed.")
    seconds: float


class CurationsResponse(Body):
    """The curations, and what can be curated."""

    curations: list[str] = Field(description="Names; the first is the one given at the start, or the newest.")
    judges: list[Literal["pairs", "labels"]] = Field(description="What can be curated from here.")
    pairs: str | None = Field(description="Name of the pairs file given at the start.")
    writable: bool
    job: JobRecord | None


class FilterRecord(Body):
    """The findings of one filter."""

    name: str
    judged: int = Field(description="Lines that it checked; for copies, the groups that it found.")
    flagged: int = Field(description="Lines dropped because of it; for copies, the groups.")
    undecided: int = Field(description="Flagged lines or groups without a decision.")
    figures: dict[str, Any] = Field(description="Its own numbers, as in the JSON of frevl curate.")


class CurationResponse(Body):
    """A curation, and what is left after all decisions."""

    name: str
    task: str
    lines: int
    kept_by_curate: int
    kept: int
    version: int
    decided: int
    disputed: int = Field(description="Judgements on which people are evenly split; curate's own verdict then stands.")
    by: dict[str, int] = Field(description="Everyone's decisions.")
    doubts: list[str]
    notes: list[str]
    filters: list[FilterRecord]
    removed: dict[str, Any] | None = Field(
        description="What frevl curate removes by group, compared with random removal (docs/curate.md)."
    )
    writable: bool


class RemovedResponse(Body):
    """What is removed from each group, compared with random removal."""

    version: int = Field(description="Version of the decisions.")
    decided: bool = Field(description="Whether decisions are included; otherwise it is what frevl curate removes.")
    why_not: str = Field(description="Why existing decisions are not included; empty if they are.")
    removed: dict[str, Any] | None = Field(description="Null if all lines are kept, or none.")


class LabelVerdict(Body):
    """A label, a likelier one, and the given label's probability."""

    given: str | None
    likelier: str | None
    probability: float | None


class JudgedLine(Body):
    """A line and one filter's verdict on it."""

    line: str = Field(description="Key of the line, used in decisions.")
    image: str | None
    text: str | None
    target: Any
    probability: float | None = Field(
        description="Probability that the line is correct; for blind, of its label given the text alone."
    )
    label: LabelVerdict | None
    reasons: list[str]
    flagged: bool = Field(description="Whether curate drops the line for this reason.")
    kept: bool = Field(description="Whether it is kept after all decisions.")
    why: list[str] = Field(description="The filters that then drop it.")
    said: _Said
    decision: Say | None = Field(description="The majority decision; null if there is none or people are split.")


class JudgedResponse(Body):
    """A page of lines, most suspicious first."""

    total: int
    start: int
    lines: list[JudgedLine]


class CopyRecord(Body):
    """One of several copies."""

    picture: str = Field(description="Its id, or the text if there are only texts.")
    lines: int
    texts: list[str] = Field(description="The first texts of its lines.")
    kept: bool = Field(description="Whether it is kept after all decisions; other filters may still drop its lines.")
    kept_by_curate: bool
    said: _Said


class GroupRecord(Body):
    """Images that are copies of one another."""

    group: str
    decided: bool
    copies: list[CopyRecord]
    more: int = Field(description="Further copies, not listed; decisions on the group also apply to them.")


class DuplicatesResponse(Body):
    """A page of groups of copies."""

    total: int
    start: int
    groups: list[GroupRecord]


class Decision(Body):
    """A decision on one judgement of a line, or on an image that is one of several copies."""

    line: Annotated[str | None, Field(pattern="^[0-9a-f]{16}$", description="Key of the line; requires a filter.")] = (
        None
    )
    filter: LineFilter | None = None
    picture: Annotated[str | None, Field(min_length=1, description="Image in a group of copies.")] = None
    group: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Name of a group of copies. drop: removes all except the one that curate keeps, or except "
            "`picture` if given; keep: keeps all.",
        ),
    ] = None
    say: Annotated[
        Say | None,
        Field(
            description="drop: remove it; keep: keep it; fix: give it the likelier label; null: withdraw the decision."
        ),
    ]

    @model_validator(mode="after")
    def _one(self) -> Decision:
        copies = self.picture is not None or self.group is not None
        if (self.line is None) != copies or (self.line is None) != (self.filter is None):
            raise ValueError("a decision names a 'line' with a 'filter', a 'picture', or a 'group'")
        if self.group is not None and self.picture is not None and self.say != "drop":
            raise ValueError("a 'group' with a 'picture' requires the decision 'drop', for the others")
        if self.say == "fix" and self.filter != "label":
            raise ValueError("only a label can be fixed, with the likelier one")
        return self


class DecideRequest(Body):
    """Decisions to write: all or none."""

    of: Of = None
    by: By
    id: RequestId = None
    decisions: Annotated[list[Decision], Field(min_length=1)]


class DecidedResponse(Body):
    """Decisions written to disk."""

    id: str
    version: int
    kept: int


class UndecideRequest(Body):
    """What to undo: someone's last decisions, or those under an id."""

    of: Of = None
    by: Annotated[By, Field(max_length=LONGEST_NAME)]
    id: RequestId = None


class UndecidedResponse(Body):
    """Decisions that no longer count."""

    id: str
    version: int
    kept: int
    judgements: int


class StartCurationRequest(Body):
    """What to curate in the background."""

    judge: Literal["pairs", "labels"] = Field(
        description="The pairs file given at the start, or the labels of the store."
    )


class StopCurationRequest(Body):
    """Stops the curation; takes no fields."""
