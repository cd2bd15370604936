"""Broken versions of sound files, drawn by hypothesis: from a stranger, a bad disk or a truncated download."""

import json

from hypothesis import strategies as st

__all__ = ["broken", "broken_json"]

_EXTREMES = [0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]


@st.composite
def broken(draw, content, most=6):
    """Bytes with a few changes: flipped, cut, repeated, taken out, or with another number in their place."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        if not changed:
            break
        # Headers stand at either end.
        near = draw(st.sampled_from(["anywhere", "begin", "end"]))
        reach = min(len(changed), 256)
        first, last = {"anywhere": (0, len(changed)), "begin": (0, reach), "end": (len(changed) - reach, len(changed))}[
            near
        ]
        place = draw(st.integers(first, last - 1))
        kind = draw(st.sampled_from(["flip", "number", "cut", "repeat", "remove", "insert"]))
        if kind == "flip":
            changed[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "number":
            width = draw(st.sampled_from([1, 2, 4, 8]))
            number = draw(st.sampled_from(_EXTREMES)) % (1 << (8 * width))
            changed[place : place + width] = number.to_bytes(width, draw(st.sampled_from(["little", "big"])))
        elif kind == "cut":
            del changed[place:]
        elif kind == "repeat":
            changed[place:place] = changed[place : place + draw(st.integers(1, 64))] * draw(st.integers(1, 50))
        elif kind == "remove":
            del changed[place : place + draw(st.integers(1, 64))]
        else:
            changed[place:place] = draw(st.binary(min_size=1, max_size=16))
    return bytes(changed)


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30, 1e308, -1e308, 5e-324, 1_000_000]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=8),
    st.sampled_from(["", "\0", "\ud800", "é" * 300, "../..", "nan", "image", "text", "fusion", "mlp"]),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def broken_json(draw, record, most=3):
    """JSON of a record in which a few entries, however deep, are gone, exchanged or of another kind."""
    changed = json.loads(json.dumps(record))
    for _ in range(draw(st.integers(1, most))):
        parent, key = None, None
        inner = changed
        while isinstance(inner, dict | list) and inner and (parent is None or draw(st.integers(0, 3))):
            parent = inner
            key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
            inner = inner[key]
        if parent is None:
            return json.dumps(draw(_VALUES)).encode("utf-8", "surrogatepass")
        kind = draw(st.sampled_from(["other", "other", "remove", "deep"]))
        if kind == "other":
            parent[key] = draw(_VALUES)
        elif kind == "remove":
            del parent[key]
        else:
            depth = draw(st.sampled_from([3, 100, 900, 5_000]))
            text = json.dumps(changed | {"deep": None}) if isinstance(changed, dict) else json.dumps(changed)
            return text.replace("null", "[" * depth + "]" * depth, 1).encode("utf-8", "surrogatepass")
    return json.dumps(changed).encode("utf-8", "surrogatepass")
