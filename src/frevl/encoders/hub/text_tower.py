"""Text towers of the transformers library: those of joint models, BERT-like and sentence-transformers models."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from frevl.encoders.hub.checkpoint import Checkpoint, digest_of, file_digest
from frevl.encoders.hub.image_tower import column, common_space, hidden_layers
from frevl.encoders.hub.networks import JOINT, load_config, quiet_transformers, text_source
from frevl.encoders.interface import MOST_CHARACTERS, Embeddings, keep_layers, readable
from frevl.encoders.onnx_session import Source
from frevl.encoders.runtime import Network, open_runtime
from frevl.encoders.unreadable_texts import Pieces, UnreadTexts, pieces_of_encoding
from frevl.errors import EncoderError

__all__ = ["HuggingFaceTextTower", "pieces_of", "text_tower"]

# Trained on texts padded to the full length, so the padding is part of the input.
_PADDED = ("siglip", "siglip2")
# Files that determine what a tokenizer does.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
_BLANKS = " \u2581\u0120"  # how tokenizers write the blank before a word
_POOLINGS = ("mean", "cls", "lasttoken")


@dataclass(frozen=True)
class HuggingFaceTextTower:
    """A text network with its own tokenizer.

    Texts with the same number of pieces run together, so nothing is padded, except for models trained on padded texts
    (SigLIP, SigLIP 2).

    Attributes:
        name: The tower's column in a store.
        dim: Width of an embedding.
        identity: Everything that can change an embedding, field by field.
        tokens: ``pooled`` or ``words``.
        pooling: ``own`` (by the network), ``mean``, ``cls`` or ``lasttoken``.
        layers: Number of hidden states concatenated; 0 for the network's own output.
        tokenizer: The tokenizer of the transformers library.
        longest: Maximum number of pieces that the network reads.
        padded: Whether every text is padded to that length.
        lower: Whether texts are converted to lower case first.
        prompt: Prefix of every text.
        network: Runs on ids; see `inputs`.
    """

    name: str
    dim: int
    identity: dict[str, str]
    tokens: str
    pooling: str
    layers: int
    tokenizer: Any
    longest: int
    padded: bool
    lower: bool
    prompt: str
    network: Network
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def batch_size(self) -> int:
        """Number of texts to pass at once."""
        return 8 * self.network.batch_size

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts; the empty text becomes the tokenizer's special tokens, or one unknown token if it has none."""
        inputs = self.inputs(texts)
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, ids in enumerate(inputs):
            by_shape[ids.shape].append(i)
        items: list[np.ndarray] = [np.empty(0)] * len(texts)
        for members in by_shape.values():
            for i, output in zip(members, self.network([inputs[i] for i in members]), strict=True):
                items[i] = self._kept(inputs[i], output)
        return Embeddings.of(items, self.dim)

    def inputs(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the network's input for each text: ``(length,)`` ids, or ``(2, length)`` ids and mask if padded."""
        if not texts:
            return []  # a tokenizer cannot take an empty list
        with self._lock:  # a tokenizer stores its settings for truncation and padding in itself
            made = self.tokenizer(
                [self._clean(text) for text in texts],
                truncation=True,
                max_length=self.longest,
                padding="max_length" if self.padded else False,
                return_attention_mask=True,
            )
        if self.padded:
            pairs = zip(made["input_ids"], made["attention_mask"], strict=True)
            return [np.array([ids, mask], np.int64) for ids, mask in pairs]
        nothing = self.tokenizer.unk_token_id or self.tokenizer.pad_token_id or 0
        return [np.array(ids or [nothing], np.int64) for ids in made["input_ids"]]

    def truncated(self, texts: Sequence[str]) -> int:
        """Count the texts with more pieces than the network can read."""
        if not texts:
            return 0
        with self._lock:
            made = self.tokenizer([self._clean(text) for text in texts], truncation=False, padding=False, verbose=False)
        return sum(
            len(text) > MOST_CHARACTERS or len(ids) > self.longest
            for text, ids in zip(texts, made["input_ids"], strict=True)
        )

    def unread(self, texts: Sequence[str]) -> np.ndarray:
        """Return the share of each text's letters that the tokenizer does not know, ``(n,)`` float32."""
        return self._unread.shares(texts)

    @cached_property
    def _unread(self) -> UnreadTexts:
        return UnreadTexts(self._pieces)

    def _pieces(self, texts: Sequence[str]) -> list[Pieces]:
        with self._lock:
            return pieces_of(self.tokenizer, [self._clean(text) for text in texts], self.longest, len(self.prompt))

    def _kept(self, ids: np.ndarray, output: np.ndarray) -> np.ndarray:
        if self.tokens == "pooled" and self.pooling == "own":
            return keep_layers(output, "pooled", 1)
        tokens = output[ids[1].astype(bool)] if self.padded and ids[1].any() else output
        if self.tokens == "pooled" and self.pooling == "cls":
            tokens = tokens[:1]
        if self.tokens == "pooled" and self.pooling == "lasttoken":
            tokens = tokens[-1:]
        return keep_layers(tokens, self.tokens, max(1, self.layers))

    def _clean(self, text: str) -> str:
        text = readable(text)
        return self.prompt + (text.lower() if self.lower else text)


def pieces_of(tokenizer: Any, texts: Sequence[str], longest: int, prefix: int = 0) -> list[Pieces]:
    """Split texts into pieces with a tokenizer of the transformers library.

    Args:
        tokenizer: The tokenizer.
        texts: Texts exactly as passed to it.
        longest: Maximum number of pieces that the network reads.
        prefix: Number of characters before each text that do not belong to it.
    """
    if not texts:
        return []  # a tokenizer cannot take an empty list
    if not tokenizer.is_fast:
        return [_rough_pieces(tokenizer, text[prefix:]) for text in texts]
    made = tokenizer(list(texts), truncation=True, max_length=longest, padding=False)
    unknown = tokenizer.unk_token_id
    pairs = zip(texts, made.encodings, strict=True)
    return [pieces_of_encoding(text, encoding, unknown, prefix=prefix) for text, encoding in pairs]


def _rough_pieces(tokenizer: Any, text: str) -> Pieces:
    """Locate the pieces of a tokenizer that reports no offsets; the gaps between them are unknown pieces."""
    spans, place = [], 0
    for piece in tokenizer.tokenize(text):
        letters = piece.strip(_BLANKS).removeprefix("##").removesuffix("</w>")
        found = text.find(letters, place) if letters and piece != tokenizer.unk_token else -1
        if found >= 0:
            spans.append((found, found + len(letters), True))
            place = found + len(letters)
    return Pieces(text, spans)


def text_tower(checkpoint: Checkpoint, tokens: str, layers: Sequence[int], choice: str) -> HuggingFaceTextTower:
    """Load the text tower of a model.

    Args:
        checkpoint: The model.
        tokens: ``pooled``; any other kind means word tokens.
        layers: Hidden states to concatenate, instead of the network's own output.
        choice: ``auto``, ``torch`` or ``int8``; see `frevl.encoders.runtime.open_runtime`.

    Raises:
        EncoderError: The model is damaged, has no tokenizer, or pools in an unsupported way.
        UsageError: The network does not have the requested layer.
        MissingExtraError: A library is missing.
    """
    config = load_config(checkpoint)
    joint = config.model_type in JOINT
    kind = "pooled" if tokens == "pooled" else "words"
    sentence = checkpoint.settings("sentence_bert_config.json")
    tokenizer = _load_tokenizer(checkpoint)
    longest = _longest(tokenizer, getattr(config, "text_config", config), sentence)
    padded = config.model_type in _PADDED
    masked = "attention_mask" in tokenizer.model_input_names
    # The tokenizer of SigLIP 2 is Gemma's; SigLIP 2 (arXiv 2502.14786) was trained on lower case, Gemma was not.
    written = str(checkpoint.settings("tokenizer_config.json").get("tokenizer_class", ""))
    lower = bool(sentence.get("do_lower_case")) or (padded and "Gemma" in written + type(tokenizer).__name__)
    prompt = _prompt(checkpoint)
    own = joint and kind == "pooled" and not layers
    pooling = "own" if own else "mean" if joint or layers else _pooling(checkpoint)
    name = column(checkpoint, "text", layers) + ("-int8" if choice == "int8" else "")
    rng = np.random.default_rng(0)
    vocabulary = int(getattr(config, "text_config", config).vocab_size)
    shapes = [(2, 2, longest)] if padded else [(2, 7), (1, 2), (3, min(33, longest)), (1, longest)]

    def build() -> Source:
        examples = [rng.integers(0, vocabulary, shape) for shape in shapes]
        if padded:
            examples = [
                np.stack([example[:, 0], np.arange(longest) < [[3], [longest]]], axis=1) for example in examples
            ]
        return text_source(checkpoint, config, examples, pooled=own, layers=layers, padded=padded, masked=masked)

    key = digest_of([checkpoint.weights, checkpoint.configuration, "text", own, list(layers), padded, masked, longest])
    network = open_runtime(column(checkpoint, "text", layers), key, build, choice)
    length = f"padded to {longest}{' with' if masked else ' without'} a mask" if padded else f"at most {longest}"
    tower = HuggingFaceTextTower(
        name=name,
        dim=0,
        identity={
            "tower": name,
            "weights": checkpoint.weights,
            "revision": checkpoint.revision,
            "configuration": checkpoint.configuration,
            "preprocessing": f"{type(tokenizer).__name__} {_tokenizer_digest(checkpoint)[:16]}, pieces {length}"
            f"{', lower case' if lower else ''}{f', after {prompt!r}' if prompt else ''}",
            "tokens": kind,
            "output": "pooled by the network" if own else hidden_layers(layers, f"{pooling} of tokens"),
            "normalisation": "mean of tokens at unit length",
            **({"precision": "int8 weights"} if choice == "int8" else {}),
            **(common_space(checkpoint, config) if own else {}),
        },
        tokens=kind,
        pooling=pooling,
        layers=len(layers),
        tokenizer=tokenizer,
        longest=longest,
        padded=padded,
        lower=lower,
        prompt=prompt,
        network=network,
    )
    return replace(tower, dim=network(tower.inputs(["a"]))[0].shape[-1])


def _load_tokenizer(checkpoint: Checkpoint) -> Any:
    with quiet_transformers() as transformers:
        try:
            return transformers.AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True)
        except Exception as error:  # transformers has no specific exception for this
            raise EncoderError(
                f"'{checkpoint.model}': expected a tokenizer, found none that transformers {transformers.__version__} "
                f"can load ({' '.join(str(error).split())[:150]})"
            ) from None


def _longest(tokenizer: Any, config: Any, sentence: dict[str, Any]) -> int:
    """Return how many pieces the network reads: the smallest limit of tokenizer, network and settings."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 512)
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= 2  # the first two positions are reserved for padding
    stated = [positions, int(tokenizer.model_max_length), int(sentence.get("max_seq_length") or positions)]
    return max(1, min(stated))


def _pooling(checkpoint: Checkpoint) -> str:
    """Return how a sentence-transformers model pools; other models take the mean, as that library does with them."""
    modules = checkpoint.settings_list("modules.json")
    unknown = [
        one for one in modules if one.get("type", "").split(".")[-1] not in ("Transformer", "Pooling", "Normalize")
    ]
    if unknown:
        raise EncoderError(
            f"'{checkpoint.model}' has a part '{unknown[0].get('type')}' after its network, which frevl cannot run; "
            "use a sentence-transformers model of Transformer, Pooling and Normalize"
        )
    folders = [one.get("path", "") for one in modules if one.get("type", "").endswith("Pooling")]
    if not folders:
        return "mean"
    settings = checkpoint.settings(f"{folders[0]}/config.json")
    if settings.get("include_prompt") is False and _prompt(checkpoint):
        raise EncoderError(
            f"'{checkpoint.model}' leaves its prompt out of the pooling (\"include_prompt\": false), which frevl does "
            "not do; use a model that pools all of its tokens"
        )
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}
    chosen = (
        [settings["pooling_mode"]]
        if "pooling_mode" in settings
        else [
            names.get(name, name)
            for name, value in settings.items()
            if name.startswith("pooling_mode_") and value is True
        ]
    )
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        raise EncoderError(
            f"'{checkpoint.model}' pools its tokens by {chosen}; frevl supports one of {', '.join(_POOLINGS)}"
        )
    return str(chosen[0])


def _prompt(checkpoint: Checkpoint) -> str:
    """Return the prompt with which a sentence-transformers model prefixes every text by default."""
    settings = checkpoint.settings("config_sentence_transformers.json")
    return str((settings.get("prompts") or {}).get(settings.get("default_prompt_name") or "") or "")


def _tokenizer_digest(checkpoint: Checkpoint) -> str:
    files = [checkpoint.folder / name for name in _TOKENIZER_FILES]
    return digest_of({path.name: file_digest(path) for path in files if path.is_file()})
