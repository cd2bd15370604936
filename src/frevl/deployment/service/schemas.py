"""Request and response bodies, with examples for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema

__all__ = [
    "EITHER_IMAGE",
    "Answer",
    "AnswerRequest",
    "AnswerResponse",
    "Body",
    "EmbedRequest",
    "EmbedResponse",
    "ErrorResponse",
    "Label",
    "ModelRecord",
    "ModelsResponse",
    "Pair",
    "Score",
    "ScoreRequest",
    "ScoreResponse",
    "SearchHit",
    "SearchRequest",
    "SearchResponse",
    "StateResponse",
]

_BASE64 = {
    "type": "string",
    "contentEncoding": "base64",
    "minLength": 1,
    # Spaces and line breaks between the characters are allowed.
    "pattern": r"^(data:[a-z/+.-]+;base64,)?\s*(([A-Za-z0-9+/]\s*){4})*"
    r"(([A-Za-z0-9+/]\s*){2}=\s*=\s*|([A-Za-z0-9+/]\s*){3}=\s*)?$",
}

Uploads = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=100)], Annotated[str, Field(min_length=1)]],
    Field(
        description="Uploaded images in base64, under names of your choice; in a multipart request, additional fields.",
        json_schema_extra={"additionalProperties": _BASE64},
    ),
]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("a text must not be blank")
    return text


Text = Annotated[str, Field(min_length=1, json_schema_extra={"pattern": r"\S"}), AfterValidator(_not_blank)]
"""A sentence or question."""
ImageId = Annotated[str, Field(min_length=1, max_length=4096, description="Id of an image in the store.")]
UploadName = Annotated[str, Field(min_length=1, max_length=100, description="Name of an uploaded image.")]


class _LeftOut:
    """Mark a field that may be omitted but not null, without calling a Python function for every value."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: Any = handler(source)
        return schema["schema"] if schema["type"] == "nullable" else schema["choices"][0]  # type: ignore[no-any-return]


_LEAVE_OUT = _LeftOut()
ModelName = Annotated[str | None, Field(max_length=200, description="Name of the model; defaults to the first one.")]

EITHER_IMAGE = "either 'image' (an id in the store) or 'upload' (an uploaded image)"
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


class Body(BaseModel):
    """The body of a request or a response."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _sides_of_a_pair(schema: dict[str, Any]) -> None:
    for name in ("image", "upload", "text"):
        schema["properties"][name].pop("default", None)
    schema["anyOf"] = [{"required": [name]} for name in ("image", "upload", "text")]
    schema["not"] = {"required": ["image", "upload"]}


class Pair(Body):
    """An image and a text. The image is either in the store or uploaded.

    A model that reads only images needs no text, and one that reads only texts needs no image; see ``/v1/models``.
    """

    image: Annotated[ImageId | SkipJsonSchema[None], _LEAVE_OUT] = None
    upload: Annotated[UploadName | SkipJsonSchema[None], _LEAVE_OUT] = None
    text: Annotated[Text | SkipJsonSchema[None], _LEAVE_OUT] = None

    model_config = ConfigDict(json_schema_extra=_sides_of_a_pair)

    @model_validator(mode="after")
    def _one_image(self) -> Pair:
        if self.image is not None and self.upload is not None:
            raise ValueError(f"a pair names {EITHER_IMAGE}, not both")
        if self.image is None and self.upload is None and self.text is None:
            raise ValueError("a pair needs an image, a text, or both, found neither")
        return self


class _PairsRequest(Body):
    model: ModelName = None
    pairs: Annotated[list[Pair], Field(min_length=1)]
    sets: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            allow_inf_nan=False,
            description="Return prediction sets: the answers that cannot be ruled out, with the right one among them "
            "for at least this share of images.",
        ),
    ] = None
    doubt: Annotated[bool, Field(description="Return how unlike the training data each pair is, from 0 to 1.")] = False
    uploads: Uploads = Field(default_factory=dict)


class ScoreRequest(_PairsRequest):
    """Pairs to score."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"pairs": [{"image": "0.png", "text": "a red square"}]},
                {"pairs": [{"upload": "mine", "text": "a red square"}], "uploads": {"mine": _PIXEL}},
            ]
        }
    )


class AnswerRequest(_PairsRequest):
    """Questions about images."""

    top: Annotated[int, Field(ge=1, le=100, description="Number of classes to return.")] = 5
    threshold: Annotated[
        float,
        Field(ge=0, le=1, allow_inf_nan=False, description="Abstain if the best probability is below this."),
    ] = 0.0

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"pairs": [{"image": "0.png", "text": "is the square red?"}], "top": 3, "threshold": 0.5},
                {"pairs": [{"image": "0.png", "text": "is the square red?"}], "sets": 0.9},
                {"pairs": [{"upload": "mine", "text": "is the square red?"}], "uploads": {"mine": _PIXEL}},
            ]
        }
    )


def _one_of_three(schema: dict[str, Any]) -> None:
    for name in ("text", "image", "upload"):
        schema["properties"][name].pop("default", None)
    schema["oneOf"] = [{"required": [name]} for name in ("text", "image", "upload")]
    schema["examples"] = [
        {"text": "a red square", "k": 3},
        {"image": "0.png", "k": 3},
        {"upload": "mine", "uploads": {"mine": _PIXEL}, "find": "texts", "k": 3},
    ]


class SearchRequest(Body):
    """What to search for: a text, an image in the store, or an uploaded image."""

    model: ModelName = None
    text: Annotated[Text | SkipJsonSchema[None], _LEAVE_OUT] = None
    image: Annotated[ImageId | SkipJsonSchema[None], _LEAVE_OUT] = None
    upload: Annotated[UploadName | SkipJsonSchema[None], _LEAVE_OUT] = None
    uploads: Uploads = Field(default_factory=dict)
    find: Annotated[Literal["images", "texts"], Field(description="Texts can only be found for an image.")] = "images"
    k: Annotated[int, Field(ge=1, le=100, description="Number of hits.")] = 10
    rerank: Annotated[
        bool, Field(description="Sort by the run's score; false: by the first stage's similarity only.")
    ] = True
    stages: Annotated[bool, Field(description="Also return the first stage's order.")] = False
    where: Annotated[
        str | None,
        Field(max_length=1000, description="Search only items that meet this SQL condition on id, bytes and metadata."),
    ] = None

    model_config = ConfigDict(json_schema_extra=_one_of_three)

    @model_validator(mode="after")
    def _one_query(self) -> SearchRequest:
        if sum(query is not None for query in (self.text, self.image, self.upload)) != 1:
            raise ValueError("a search needs exactly one of 'text', 'image' (an id in the store) and 'upload'")
        if self.text is not None and self.find == "texts":
            raise ValueError("a text finds images; to find texts, give an image")
        return self


class EmbedRequest(Body):
    """Items to embed with the encoders of a model: texts, images in the store, uploaded images."""

    model: ModelName = None
    texts: list[Text] = Field(default_factory=list)
    images: list[ImageId] = Field(default_factory=list)
    uploads: Uploads = Field(default_factory=dict)

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"texts": ["a dog on a beach"], "images": ["0.png"]}, {"uploads": {"mine": _PIXEL}}],
            "anyOf": [
                {"required": ["texts"], "properties": {"texts": {"minItems": 1}}},
                {"required": ["images"], "properties": {"images": {"minItems": 1}}},
                {"required": ["uploads"], "properties": {"uploads": {"minProperties": 1}}},
            ],
        }
    )


class Label(Body):
    """A class and its calibrated probability."""

    label: str
    probability: float


class _Trust(Body):
    """How far to trust a result, if requested."""

    set: list[str] | None = Field(None, description="With sets, classification: classes that cannot be ruled out.")
    matches: bool | None = Field(None, description="With sets, matching: null if neither can be ruled out.")
    doubt: float | None = Field(None, description="With doubt: from 0, like the training data, to 1, unlike any of it.")


class Score(_Trust):
    """Result for a pair: ``score`` for matching, ``label`` and ``top`` for classification."""

    score: float | None = Field(None, description="Matching: the logit; higher is a better match.")
    label: str | None = Field(None, description="Classification: the most probable class.")
    probability: float = Field(description="Calibrated probability of a match, or of the label.")
    top: list[Label] | None = Field(None, description="Classification: the five most probable classes.")
    unknown: bool | None = Field(
        None, description="Runs of classify with --unknown: the image probably belongs to none of the classes."
    )


class ScoreResponse(Body):
    """One score per pair, in their order."""

    model: str
    task: Literal["matching", "classification"]
    scores: list[Score]
    notes: list[str] = Field(description="Notes for people, such as on texts that the encoder cannot read.")


class Answer(_Trust):
    """An answer, or none if the model is unsure."""

    answer: str | None = Field(description="The most probable class; null if abstained.")
    probability: float = Field(description="Calibrated probability of the most probable class.")
    abstained: bool = Field(
        description="The probability is below the threshold, or the image belongs to no known class."
    )
    top: list[Label]


class AnswerResponse(Body):
    """One answer per pair, in their order."""

    model: str
    threshold: float
    answers: list[Answer]
    notes: list[str] = Field(description="Notes for people, such as on texts that the encoder cannot read.")


class SearchHit(Body):
    """A search hit."""

    rank: int
    id: str = Field(description="Id of the image, or the text.")
    score: float = Field(description="The run's score of the pair; for image-to-image search, the similarity.")
    probability: float | None = Field(description="Calibrated probability of a match; null for image-to-image search.")
    similarity: float = Field(description="Cosine similarity of the first stage.")
    metadata: dict[str, Any]


class SearchResponse(Body):
    """The hits, best first."""

    model: str
    find: Literal["images", "texts"]
    searched: int = Field(description="Number of items searched.")
    reranked: int = Field(description="Number of candidates that the run reranked.")
    exact: bool = Field(description="False if an index selected the candidates.")
    notes: list[str]
    hits: list[SearchHit]
    first_stage: list[SearchHit] | None = Field(None, description="With stages: the best by similarity only.")


class EmbedResponse(Body):
    """Embeddings as `Store.read_texts` and `Store.read_images` return them: float32, each tower at unit length."""

    model: str
    text_dim: int
    image_dim: int
    texts: list[list[float]]
    images: list[list[float]]
    uploads: dict[str, list[float]]


class ModelRecord(Body):
    """A served model."""

    name: str
    model: str = Field(description="Its kind: tiny, linear, ...")
    task: Literal["matching", "classification"]
    parameters: int
    labels: int = Field(description="Number of classes; 0 for matching.")
    encoders: list[str]
    searches: bool = Field(description="Whether /v1/search can use it.")
    reads: list[Literal["image", "text"]] = Field(description="The sides of a pair that it needs.")
    embeds: list[Literal["image", "text"]] = Field(
        description="The sides that the service can embed; anything else must be in the store."
    )
    sets: bool = Field(description="Whether a request may ask for sets.")
    doubt: bool = Field(description="Whether a request may ask for doubt.")


class ModelsResponse(Body):
    """All models, the first of which is the default, and the limits on a request."""

    models: list[ModelRecord]
    images: int = Field(description="Images in the store.")
    texts: int = Field(description="Texts in the store.")
    limits: dict[str, float]


class StateResponse(Body):
    """Whether the service is alive or ready."""

    status: Literal["alive", "ready"]


class _Error(Body):
    code: str = Field(description="A code for programs.")
    message: str = Field(description="A sentence for people.")
    request_id: str = Field(description="Also in the header X-Request-ID and in the log.")


class ErrorResponse(Body):
    """Why a request was not answered."""

    error: _Error
