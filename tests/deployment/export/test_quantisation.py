"""Matrix products in 8-bit integers: numbers by pencil, a slow reference, no dependence on the batch."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from frevl.deployment.export.quantisation import quantise_rows, quantise_weights


def test_weights_are_rounded_column_by_column():
    integers, scales = quantise_weights(np.float32([[1.0, 0.0, -0.5], [-0.5, 0.0, 2.0]]))
    assert integers.dtype == np.int8
    assert integers.tolist() == [[64, 0, -16], [-32, 0, 64]]
    assert scales == pytest.approx([1 / 64, 1e-12 / 64, 2 / 64])


def product(weights, rows=2):
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["product"]), helper.make_node("Add", ["product", "bias"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"] * (rows - 1) + [weights.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"] * (rows - 1) + [weights.shape[1]])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.float32(weights[0] * 0 + 1), "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def slow(weights, row):
    """One row at a time, with Python's numbers."""
    step = max(abs(float(value)) for value in row) / 127
    q = [round(float(value) / step) for value in row]
    result = []
    for column in weights.T:
        scale = max(abs(float(value)) for value in column) / 64
        total = sum(a * round(float(value) / scale) for a, value in zip(q, column, strict=True))
        result.append(total * step * scale + 1)
    return result


def test_a_product_equals_the_slow_twin_whatever_stands_beside_a_row():
    random = np.random.default_rng(0)
    weights = random.standard_normal((13, 7)).astype(np.float32)
    x = random.standard_normal((5, 13)).astype(np.float32) * np.float32([[1], [100], [0.01], [1], [3]])
    model = product(weights)
    assert quantise_rows(model) == 1
    found = run(model, x)
    np.testing.assert_allclose(found, [slow(weights, row) for row in x], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(run(model, x[2:3]), found[2:3])
    assert np.abs(found - (x @ weights + 1)).max() / np.abs(x @ weights).max() < 0.02
    assert {node.op_type for node in model.graph.node} >= {"MatMulInteger"}
    assert "MatMul" not in {node.op_type for node in model.graph.node}
    assert all(one.name != "w" for one in model.graph.initializer)


def test_tokens_have_a_scale_each_and_a_zero_row_stays_zero():
    weights = np.random.default_rng(1).standard_normal((11, 3)).astype(np.float32)
    x = np.random.default_rng(2).standard_normal((1, 5, 11)).astype(np.float32)
    x[0, 3] = 0
    model = product(weights, rows=3)
    quantise_rows(model)
    found = run(model, x)
    assert found.shape == (1, 5, 3)
    np.testing.assert_allclose(found[0, [0, 4]], [slow(weights, row) for row in x[0, [0, 4]]], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found[0, 3], [1, 1, 1])


def test_nothing_to_do_is_told():
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "none",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    model = helper.make_model(graph)
    assert quantise_rows(model) == 0
    assert [node.op_type for node in model.graph.node] == ["Relu"]
    onnx.checker.check_model(model)
