"""Bodies of requests and answers about curations."""

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

Of = Annotated[str | None, Field(max_length=4096, description="Name of the curation; the first if there is none.")]
LineFilter = Literal["match", "label", "blind", "text", "image", "repeated"]
Say = Literal["drop", "keep", "fix"]
_Said = Annotated[dict[str, str], Field(description="What everybody says: drop, keep or fix.")]


class JobRecord(Body):
    """A curation that was begun from the page."""

    name: str
    state: Literal["running", "done", "failed", "stopped"]
    said: str = Field(description="The last line that it printed, or why it failed.")
    seconds: float


class CurationsResponse(Body):
    """Which curations there are, and what can be judged."""

    curations: list[str] = Field(description="Names; the first is the one that was given at the start, or the newest.")
    judges: list[Literal["pairs", "labels"]] = Field(description="What can be judged from here.")
    pairs: str | None = Field(description="Name of the pairs file that was given at the start.")
    writable: bool
    job: JobRecord | None


class FilterRecord(Body):
    """What one filter found."""

    name: str
    judged: int = Field(description="Lines, or groups of copies, that it has something to say of.")
    flagged: int = Field(description="Those that go because of it.")
    undecided: int = Field(description="Those of the flagged that nobody has decided on.")
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
    disputed: int = Field(description="Judgements on which people are divided evenly; there curate has the last word.")
    by: dict[str, int] = Field(description="Decisions of everybody.")
    doubts: list[str]
    notes: list[str]
    filters: list[FilterRecord]
    removed: dict[str, Any] | None = Field(
        description="What frevl curate removes by group, against random removal (docs/curate.md)."
    )
    writable: bool


class RemovedResponse(Body):
    """What goes by group, against random removal."""

    version: int = Field(description="Of the decisions.")
    decided: bool = Field(description="Whether decisions count in it; else it is what frevl curate removes.")
    why_not: str = Field(description="Why decisions that were made do not count in it; empty if they do.")
    removed: dict[str, Any] | None = Field(description="Null where all lines are kept, or none.")


class LabelVerdict(Body):
    """A label, the likelier one, and the probability of the given one."""

    given: str | None
    likelier: str | None
    probability: float | None


class JudgedLine(Body):
    """A line, with what one filter says of it."""

    line: str = Field(description="Key of the line, by which it is decided on.")
    image: str | None
    text: str | None
    target: Any
    probability: float | None = Field(description="That the line is right; of blind, of its label by the text alone.")
    label: LabelVerdict | None
    reasons: list[str]
    flagged: bool = Field(description="Whether curate drops the line because of this.")
    kept: bool = Field(description="After all decisions.")
    why: list[str] = Field(description="Which filters drop it then.")
    said: _Said
    decision: Say | None = Field(description="What most say; null where nobody says anything or people are divided.")


class JudgedResponse(Body):
    """Some lines, the most suspicious first."""

    total: int
    start: int
    lines: list[JudgedLine]


class CopyRecord(Body):
    """One of several copies."""

    picture: str = Field(description="Its id, or the text where there are texts alone.")
    lines: int
    texts: list[str] = Field(description="The first texts of its lines.")
    kept: bool = Field(description="After all decisions; other filters may drop its lines all the same.")
    kept_by_curate: bool
    said: _Said


class GroupRecord(Body):
    """Pictures that are copies of one another."""

    group: str
    decided: bool
    copies: list[CopyRecord]
    more: int = Field(description="Further copies, not listed; what is decided of the group holds for them too.")


class DuplicatesResponse(Body):
    """Some groups of copies."""

    total: int
    start: int
    groups: list[GroupRecord]


class Decision(Body):
    """What somebody says of one judgement of a line, or of a picture that is one of several copies."""

    line: Annotated[str | None, Field(pattern="^[0-9a-f]{16}$", description="Key of the line, with a filter.")] = None
    filter: LineFilter | None = None
    picture: Annotated[str | None, Field(min_length=1, description="Of a group of copies.")] = None
    group: Annotated[
        str | None,
        Field(
            min_length=1,
            description="A group of copies, by its name. drop: all go but the one that curate keeps, or but `picture` "
            "where that is named too; keep: all stay.",
        ),
    ] = None
    say: Annotated[
        Say | None,
        Field(description="drop: it goes; keep: it stays; fix: it gets the likelier label; null takes back."),
    ]

    @model_validator(mode="after")
    def _one(self) -> Decision:
        copies = self.picture is not None or self.group is not None
        if (self.line is None) != copies or (self.line is None) != (self.filter is None):
            raise ValueError("a decision names a 'line' with a 'filter', a 'picture', or a 'group'")
        if self.group is not None and self.picture is not None and self.say != "drop":
            raise ValueError("a 'group' with a 'picture' is told to drop the others")
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
    """Decisions that are on the disk."""

    id: str
    version: int
    kept: int


class UndecideRequest(Body):
    """What to take back: what somebody decided last, or under an id."""

    of: Of = None
    by: Annotated[By, Field(max_length=LONGEST_NAME)]
    id: RequestId = None


class UndecidedResponse(Body):
    """What does not count any more."""

    id: str
    version: int
    kept: int
    judgements: int


class StartCurationRequest(Body):
    """What to judge in the background."""

    judge: Literal["pairs", "labels"] = Field(
        description="The pairs file given at the start, or the labels of the store."
    )


class StopCurationRequest(Body):
    """Ends what was begun; there is nothing to say."""
