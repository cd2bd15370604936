"""Quantise an ONNX network's matrix products to 8-bit integers, with scores independent of the batch.

ONNX Runtime's own dynamic quantisation uses one scale for a whole batch, which moved a pair's score by a tenth of the
standard deviation, depending on the other pairs. Here every row has its own scale (ours):

``y = s_row * s_column * (q(x) - 128) @ q(W)``, ``q(x) = round(x / s_row) + 128``, ``s_row = max |x_row| / 127``.

Weights take the 129 values -64 ... 64: two products of 255 * 64 still fit the 16 bits in which CPUs without VNNI
instructions add them, so the same file gives the same numbers there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from frevl.errors import library

__all__ = ["WEIGHT_LEVELS", "quantise_rows", "quantise_weights"]

WEIGHT_LEVELS = 64
_ROW_LEVELS = 127


def quantise_weights(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix column by column.

    Args:
        weights: ``(inputs, outputs)`` float32.

    Returns:
        ``(inputs, outputs)`` int8 in [-64, 64] and ``(outputs,)`` float32 scales; their product approximates the
        matrix.
    """
    scales = np.maximum(np.abs(weights).max(axis=0), 1e-12).astype(np.float32) / WEIGHT_LEVELS
    return np.rint(weights / scales).astype(np.int8), scales


def quantise_rows(model: Any) -> int:
    """Quantise every product with a constant matrix, changing the model in place.

    Args:
        model: An ``onnx.ModelProto`` with the matrices inside.

    Returns:
        Number of quantised products.
    """
    onnx = library("onnx")
    quantization = library("onnxruntime.quantization.onnx_model")
    whole = quantization.ONNXModel(model)
    whole.replace_gemm_with_matmul()
    graph = model.graph
    # The exporter's shape information refers to matrices that are now transposed.
    del graph.value_info[:]
    matrices = {one.name: one for one in graph.initializer if len(one.dims) == 2}
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in matrices]
    if not products:
        return 0
    constants = {
        "int8.row_levels": np.float32(_ROW_LEVELS),
        "int8.middle": np.float32(128),
        "int8.middle_integer": np.uint8(128),
        "int8.least": np.float32(1e-12),
        "int8.last_axis": np.array([-1], np.int64),
    }
    for name in {node.input[1] for node in products}:
        integers, scales = quantise_weights(onnx.numpy_helper.to_array(matrices[name]))
        constants |= {f"{name}.int8": integers, f"{name}.scale": scales}
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    rounded: dict[str, list[Any]] = {}
    nodes: list[Any] = []
    for node in graph.node:
        if node not in products:
            nodes.append(node)
            continue
        rows, matrix = node.input
        if rows not in rounded:  # several products may share the same rows
            rounded[rows] = _round_rows(onnx.helper.make_node, rows)
            nodes += rounded[rows]
        nodes += _product(onnx, rows, matrix, node.output[0])
    del graph.node[:]
    graph.node.extend(nodes)
    whole.remove_unused_constant()
    onnx.checker.check_model(model)
    return len(products)


def _round_rows(make: Any, x: str) -> list[Any]:
    """Return the nodes that compute ``x.row_scale`` and ``x.int8``."""
    return [
        make("Abs", [x], [f"{x}.abs"]),
        make("ReduceMax", [f"{x}.abs", "int8.last_axis"], [f"{x}.max"], keepdims=1),
        make("Max", [f"{x}.max", "int8.least"], [f"{x}.positive"]),
        make("Div", [f"{x}.positive", "int8.row_levels"], [f"{x}.row_scale"]),
        make("Div", [x, f"{x}.row_scale"], [f"{x}.scaled"]),
        make("Round", [f"{x}.scaled"], [f"{x}.whole"]),
        make("Add", [f"{x}.whole", "int8.middle"], [f"{x}.moved"]),
        make("Cast", [f"{x}.moved"], [f"{x}.int8"], to=2),  # TensorProto.UINT8
    ]


def _product(onnx: Any, x: str, matrix: str, output: str) -> list[Any]:
    """Return the nodes that compute the product. The two scales are applied one after the other.

    ONNX Runtime would mistake a single product of scales for its own quantisation and fuse it wrongly.
    """
    make = onnx.helper.make_node
    return [
        make("MatMulInteger", [f"{x}.int8", f"{matrix}.int8", "int8.middle_integer"], [f"{output}.sum"]),
        make("Cast", [f"{output}.sum"], [f"{output}.float"], to=onnx.TensorProto.FLOAT),
        make("Mul", [f"{output}.float", f"{matrix}.scale"], [f"{output}.columns"]),
        make("Mul", [f"{output}.columns", f"{x}.row_scale"], [output]),
    ]
