"""The hyperparameters of all models, with their defaults, ranges and help, which are defined only here.

To add a hyperparameter, add a line to the class of its model and use it. `frevl.train` accepts an object of these
classes or a mapping, the command line accepts ``--set name=value``, and ``frevl models show NAME`` prints the values
here. If None is allowed, the value depends on the data as the help states. This module does not import torch.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import Field, dataclass, field, fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from frevl.errors import UsageError, nearest
from frevl.training.workers.team import ALONE, Team

__all__ = [
    "AutoOptions",
    "CosineOptions",
    "DescentOptions",
    "FusionOptions",
    "KernelOptions",
    "LinearOptions",
    "MajorityOptions",
    "MlpOptions",
    "ModelOptions",
    "PairwiseOptions",
    "RerankerOptions",
    "Session",
    "TwoTowerOptions",
    "make_options",
    "options_for",
    "type_of",
    "values_of",
]

_MEASURES = ("accuracy", "macro_f1", "balanced_accuracy", "nll")
FULL_BATCH = 256
"""Default number of pairs per step."""


def option(
    default: float | str | None,
    help: str,  # noqa: A002 - the same word as on the command line
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    one_of: tuple[str, ...] | None = None,
) -> Any:
    """Declare one hyperparameter: a dataclass field with its default, help and range."""
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below, "one_of": one_of}
    return field(default=default, metadata={"help": help, **{k: v for k, v in bounds.items() if v is not None}})


def _class_weight() -> Any:
    return option(None, "Classification: balanced gives every class equal weight, however rare.", one_of=("balanced",))


@dataclass(frozen=True, kw_only=True)
class Session:
    """Settings of a whole training, independent of the model.

    Attributes:
        seed: Seed of initial weights, order, dropout and splits.
        time_limit: Time limit in seconds; None means no limit.
        device: Device for training, as named by PyTorch.
        progress: Show progress.
        team: The processes that train together; gradient descent divides its steps among them.
    """

    seed: int
    time_limit: float | None
    device: str
    progress: bool
    team: Team = ALONE


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Hyperparameters of one model.

    Raises:
        UsageError: A value has the wrong type or lies outside its range.
    """

    def __post_init__(self) -> None:
        for one in fields(self):
            object.__setattr__(self, one.name, _checked(type(self), one, getattr(self, one.name)))

    def record(self) -> dict[str, Any]:
        """Return all values by name."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def changes(self) -> dict[str, Any]:
        """Return the values that differ from the defaults."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default}


Options = TypeVar("Options", bound=ModelOptions)


@dataclass(frozen=True, kw_only=True)
class MajorityOptions(ModelOptions):
    """Options of ``majority``: there are none, as it only counts classes."""


@dataclass(frozen=True, kw_only=True)
class CosineOptions(ModelOptions):
    """Options of ``cosine``: there are none, as nothing is learned."""


@dataclass(frozen=True, kw_only=True)
class KernelOptions(ModelOptions):
    """Options of ``kernel``: the kernels and penalties to try, chosen by exact leave-one-image-out scores."""

    text_alone: bool = option(True, "Try the kernel of the text alone.")
    image_alone: bool = option(True, "Try the kernel of the image alone.")
    product: bool = option(True, "Try the product of both kernels, with a quarter of the text alone.")
    sums: bool = option(True, "Try sums of the kernels of the text, of the image, and of both.")
    largest_penalty: float = option(3.0, "Strongest ridge penalty to try.", above=0)
    smallest_penalty: float = option(0.1, "Weakest ridge penalty to try; there are two per power of ten.", above=0)
    class_weight: str | None = _class_weight()
    landmarks: int = option(4_000, "Number of landmarks, used above 20,000 pairs.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class LinearOptions(ModelOptions):
    """Options of ``linear``; its penalty is chosen on development data."""

    class_weight: str | None = _class_weight()
    negatives: int = option(3, "Matching: wrong texts for every right pair.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class DescentOptions(ModelOptions):
    """Options of gradient descent (AdamW)."""

    epochs: int = option(20, "Maximum number of epochs.", at_least=1)
    batch_size: int | None = option(FULL_BATCH, "Pairs per step.", at_least=1)
    learning_rate: float = option(5e-4, "Learning rate after warm-up.", above=0)
    final_learning_rate: float = option(1e-6, "Learning rate at the end of the cosine schedule.", at_least=0)
    weight_decay: float = option(0.01, "Weight decay.", at_least=0)
    warm_up: float = option(0.05, "Share of the training used for warm-up.", at_least=0, at_most=1)
    gradient_clip: float = option(1.0, "Maximum gradient norm.", above=0)
    label_smoothing: float = option(0.1, "Label smoothing; not used with soft targets.", at_least=0, below=1)

    @property
    def rows_per_step(self) -> int:
        """Return the batch size, 256 by default."""
        return FULL_BATCH if self.batch_size is None else self.batch_size


@dataclass(frozen=True, kw_only=True)
class PairwiseOptions(DescentOptions):
    """Options of a network trained pair by pair and measured on development pairs after every epoch."""

    batch_size: int | None = option(
        None, "Pairs per step. None: 256, in matching fewer, so that an epoch has 32 steps (at least 32).", at_least=1
    )
    patience: int = option(5, "Stop after this many epochs without improvement on development data.", at_least=1)
    keep_last: bool = option(False, "Keep the weights of the last epoch instead of the best one.")
    class_weight: str | None = _class_weight()
    negatives: int = option(3, "Matching: wrong texts for every right pair.", at_least=1)


@dataclass(frozen=True, kw_only=True)
class MlpOptions(PairwiseOptions):
    """Options of ``text``, ``image`` and ``mlp``: a network with one hidden layer."""

    hidden: int = option(512, "Width of the hidden layer.", at_least=1)
    dropout: float = option(0.3, "Probability of dropping an input or a hidden unit.", at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class FusionOptions(PairwiseOptions):
    """Options of the fusion presets ``tiny``, ``small`` and ``base``."""

    layers: int | None = option(
        None, "Number of blocks. None: the preset's, 2 in tiny and 4 in small and base.", at_least=0
    )
    dropout: float = option(0.1, "Probability of dropping a hidden unit.", at_least=0, below=1)
    input_dropout: float = option(0.0, "Probability of dropping a dimension of an embedding.", at_least=0, below=1)
    standardise: bool = option(False, "Standardise every dimension of the embeddings while training.")
    contrastive_weight: float = option(0.1, "Weight of the contrastive term.", at_least=0)
    temperature: float = option(0.07, "Temperature of the contrastive term.", above=0)
    regularisation_weight: float = option(0.01, "Weight of the feature-norm term.", at_least=0)
    mixup_share: float = option(
        0.3, "Share of batches to which mixup applies (pooled embeddings only).", at_least=0, at_most=1
    )
    mixup_alpha: float = option(0.2, "Parameter of the Beta distribution of mixup.", above=0, at_most=1)
    cross_attention: bool = option(True, "Ablation: whether the blocks attend across modalities.")
    product: bool = option(True, "Ablation: whether the fused feature holds the product v*t.")
    difference: bool = option(True, "Ablation: whether the fused feature holds the difference |v-t|.")


@dataclass(frozen=True, kw_only=True)
class TwoTowerOptions(DescentOptions):
    """Options of ``dual``, the two-tower network, which can search."""

    epochs: int = option(6, "Passes over the pairs.", at_least=1)
    batch_size: int = option(1024, "Pairs per step. The others are negatives, so large batches help.", at_least=1)
    learning_rate: float = option(1e-3, "Learning rate after warm-up.", above=0)
    weight_decay: float = option(0.2, "Weight decay.", at_least=0)
    warm_up: float = option(0.1, "Share of the training used for warm-up.", at_least=0, at_most=1)
    label_smoothing: float = option(0.1, "Share of the target spread over the batch.", at_least=0, below=1)
    members: int = option(3, "Number of networks trained from different seeds and averaged.", at_least=1)
    width: int | None = option(None, "Width of a member's vectors. None: 512; below 5,000 pairs 256.", at_least=1)
    hidden: int | None = option(None, "Width inside a projection. None: twice the width of the vectors.", at_least=1)
    stored_width: int = option(512, "Width of stored vectors, to which wider joined ones are projected.", at_least=1)
    dropout: float = option(0.5, "Probability of dropping a hidden unit.", at_least=0, below=1)
    input_dropout: float = option(0.3, "Probability of dropping a dimension of an embedding.", at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class RerankerOptions(DescentOptions):
    """Options of a fusion preset that reranks the candidates of a first stage (``--first-stage``)."""

    epochs: int = option(2, "Epochs over the lists of hard negatives.", at_least=1)
    batch_size: int = option(128, "Lists per step.", at_least=1)
    learning_rate: float = option(1e-3, "Learning rate after warm-up.", above=0)
    weight_decay: float = option(0.2, "Weight decay.", at_least=0)
    warm_up: float = option(0.1, "Share of the training used for warm-up.", at_least=0, at_most=1)
    label_smoothing: float = option(0.0, "Share of the target spread over the list.", at_least=0, below=1)
    negatives: int = option(6, "Wrong images, and wrong texts, per right pair.", at_least=1)
    layers: int | None = option(
        None, "Number of blocks. None: the preset's, 2 in tiny and 4 in small and base.", at_least=0
    )
    dropout: float = option(0.3, "Probability of dropping a hidden unit.", at_least=0, below=1)
    input_dropout: float = option(0.3, "Probability of dropping a dimension of an embedding.", at_least=0, below=1)
    cross_attention: bool = option(True, "Ablation: whether the blocks attend across modalities.")
    product: bool = option(True, "Ablation: whether the fused feature holds the product v*t.")
    difference: bool = option(True, "Ablation: whether the fused feature holds the difference |v-t|.")


@dataclass(frozen=True, kw_only=True)
class AutoOptions(ModelOptions):
    """Options of ``auto``; each candidate also has its own settings."""

    epochs: int | None = option(
        None, "Epochs for candidates that do not set their own. None: the model's default.", at_least=1
    )
    choose_by: str = option("accuracy", "Classification: metric for comparing candidates.", one_of=_MEASURES)
    class_weight: str | None = _class_weight()

    def for_candidate(self, kind: type[Options], changes: Mapping[str, Any] | None = None) -> Options:
        """Return the options of a candidate: its own settings, then these values, then the defaults of its model."""
        given = {name: value for name, value in self.changes().items() if name in kind.__dataclass_fields__}
        return kind(**{**given, **(changes or {})})


OPTIONS: dict[str, type[ModelOptions]] = {
    "auto": AutoOptions,
    "majority": MajorityOptions,
    "text": MlpOptions,
    "image": MlpOptions,
    "cosine": CosineOptions,
    "linear": LinearOptions,
    "kernel": KernelOptions,
    "mlp": MlpOptions,
    "dual": TwoTowerOptions,
    "tiny": FusionOptions,
    "small": FusionOptions,
    "base": FusionOptions,
}


def options_for(model: str, first_stage: str | None = None) -> type[ModelOptions]:
    """Return the options class of a model.

    Args:
        model: A value of ``--model``. A network without a class of its own here has `PairwiseOptions`.
        first_stage: If not None, the model reranks the candidates of this first stage.
    """
    if first_stage is not None and OPTIONS.get(model) is FusionOptions:
        return RerankerOptions
    return OPTIONS.get(model, PairwiseOptions)


def make_options(
    model: str, given: ModelOptions | Mapping[str, Any] | None = None, *, first_stage: str | None = None
) -> ModelOptions:
    """Return the options of a model, with defaults for anything not given.

    Args:
        model: A value of ``--model``.
        given: An object of the model's options class, or values by name.
        first_stage: As in `options_for`.

    Raises:
        UsageError: An object of another model, an unknown name, or a value of the wrong type or outside its range.
    """
    kind = options_for(model, first_stage)
    if isinstance(given, ModelOptions):
        if type(given) is not kind:
            raise UsageError(
                f"options: {_called(model, first_stage)} takes {kind.__name__}, found {type(given).__name__}"
            )
        return given
    known = [one.name for one in fields(kind)]
    for name in given or {}:
        if name not in known:
            raise UsageError(_unknown(name, known, model, first_stage))
    return kind(**(given or {}))


def _called(model: str, first_stage: str | None) -> str:
    return f"the model '{model}'" + ("" if first_stage is None else f" with first stage '{first_stage}'")


def _unknown(name: str, known: list[str], model: str, first_stage: str | None) -> str:
    """Return a sentence that names the models with this option, or suggests a similar name."""
    own = _called(model, first_stage)
    others = [other for other, kind in OPTIONS.items() if name in kind.__dataclass_fields__]
    if name in RerankerOptions.__dataclass_fields__:
        others.append("a fusion with --first-stage")
    if others:
        return f"{own[0].upper()}{own[1:]} has no option '{name}'; these have it: {', '.join(others)}."
    if not known:
        return f"{own[0].upper()}{own[1:]} has no option '{name}', nor has any other model."
    return f"{own[0].upper()}{own[1:]} has no option '{name}'. {nearest(name, known)}"


def _types(kind: type[ModelOptions]) -> dict[str, tuple[type, bool]]:
    """Return every option's type, and whether it may be None."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        found[name] = (next(part for part in parts if part is not type(None)), type(None) in parts)
    return found


def type_of(kind: type[ModelOptions], name: str) -> type:
    """Return the type of an option: `bool`, `int`, `float` or `str`."""
    return _types(kind)[name][0]


def values_of(kind: type[ModelOptions], name: str) -> str:
    """Return an option's range in short form, such as ``0 to <1``."""
    of_type, optional = _types(kind)[name]
    bounds = kind.__dataclass_fields__[name].metadata
    if of_type is str:
        return ", ".join([*bounds["one_of"], *(["none"] if optional else [])])
    signs = {"at_least": ">=", "above": ">", "at_most": "<=", "below": "<"}
    given = [f"{sign}{bounds[bound]}" for bound, sign in signs.items() if bound in bounds]
    if of_type is bool:
        given = ["true", "false"]
    elif len(given) == 2:
        given = [f"{given[0].removeprefix('>=')} to {given[1].removeprefix('<=')}"]
    return ", ".join([*given, *(["none"] if optional else [])])


def expected(kind: type[ModelOptions], name: str) -> str:
    """Return an option's range in words, such as ``a number from 0 to below 1``."""
    of_type, optional = _types(kind)[name]
    bounds = kind.__dataclass_fields__[name].metadata
    if of_type is str:
        return " or ".join([*bounds["one_of"], *(["none"] if optional else [])])
    words = {bool: "true or false", int: "a whole number", float: "a number"}[of_type]
    low = f"above {bounds['above']}" if "above" in bounds else ""
    high = f"below {bounds['below']}" if "below" in bounds else ""
    if "at_least" in bounds:
        low = f"from {bounds['at_least']}" if high or "at_most" in bounds else f"of at least {bounds['at_least']}"
    if "at_most" in bounds:
        high = f"{bounds['at_most']}" if low.startswith("from") else f"at most {bounds['at_most']}"
    between = ("to" if low.startswith("from") else "and") if low and high else ""
    words = " ".join(filter(None, [words, low, between, high]))
    return f"{words}, or none" if optional else words


def _checked(kind: type[ModelOptions], one: Field[Any], value: Any) -> Any:
    """Return a value as its declared type, or refuse it."""
    of_type, optional = _types(kind)[one.name]
    if value is None and optional:
        return None
    if of_type is str and value in one.metadata["one_of"]:
        return value
    abstract: Any = {bool: bool, int: numbers.Integral, float: numbers.Real, str: ()}[of_type]
    if isinstance(value, abstract) and isinstance(value, bool) == (of_type is bool):
        with suppress(OverflowError):  # an integer too large for a float
            number = of_type(value)
            if _inside(number, one.metadata):
                return number
    raise UsageError(f"The option '{one.name}' must be {expected(kind, one.name)}, found {value!r:.40}")


def _inside(value: float, bounds: Mapping[str, Any]) -> bool:
    """Return whether a value is finite and within its bounds."""
    return bool(
        -math.inf < value < math.inf
        and bounds.get("at_least", value) <= value <= bounds.get("at_most", value)
        and bounds.get("above", -math.inf) < value < bounds.get("below", math.inf)
    )
