"""Profile calls operation by operation; the page shows these profiles if a goal is missed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from frevl.deployment.efficiency.records import Record
from frevl.encoders.onnx_session import one_thread
from frevl.errors import library

__all__ = ["counted_flops", "fusion_bytes", "fusion_flops", "onnx_profile", "torch_profile", "transformer_flops"]

_CALLS = 10
_SHOWN = 10
# Operations that multiply matrices, in PyTorch and in ONNX Runtime.
_PRODUCTS = {
    "aten::addmm", "aten::addmm_", "aten::mm", "aten::bmm", "aten::mkldnn_convolution",
    "MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv",
    "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
}  # fmt: skip


def torch_profile(name: str, call: Callable[[], object], *, calls: int = _CALLS) -> Record:
    """Profile PyTorch on one core; on several, waiting times would be attributed to some operation.

    Args:
        name: Description of the call.
        call: The function to profile.
        calls: Number of calls.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler announces itself on standard error
    with one_thread(), torch.inference_mode():
        call()
        with torch.autograd.profiler.profile(use_kineto=False) as profiled:
            for _ in range(calls):
                call()
    return _record(name, {event.key: float(event.self_cpu_time_total) for event in profiled.key_averages()})


def onnx_profile(name: str, network: Path, feeds: Mapping[str, np.ndarray], *, calls: int = _CALLS) -> Record:
    """Profile ONNX Runtime on one core.

    Args:
        name: Description of the network.
        network: The network's file.
        feeds: Inputs by name.
        calls: Number of calls.
    """
    runtime = library("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = runtime.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])
        for _ in range(calls):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent: dict[str, float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            spent[kind] = spent.get(kind, 0.0) + event["dur"]
    return _record(name, spent)


def _record(name: str, spent: Mapping[str, float]) -> Record:
    total = sum(spent.values()) or 1.0
    shares = {kind: spent[kind] / total for kind in sorted(spent, key=lambda kind: -spent[kind])[:_SHOWN]}
    products = sum(spent.get(kind, 0.0) for kind in _PRODUCTS) / total
    return Record("profile", name, products, "share of matrix products", details={"shares": shares})


def fusion_flops(sizes: Mapping[str, Any], *, image_tokens: int = 1, text_tokens: int = 1) -> int:
    """Return the operations per pair of a fusion fused for inference.

    Args:
        sizes: The network's settings (`Fusion.settings`).
        image_tokens: Tokens of the image; 1 if pooled. If both are 1, ``W_q`` and ``W_k`` are never used.
        text_tokens: Tokens of the text.
    """
    d, ffn, head = int(sizes["width"]), int(sizes["ffn_width"]), int(sizes["head_width"])
    projections = image_tokens * int(sizes["image_dim"]) * d + text_tokens * int(sizes["text_dim"]) * d
    block = (image_tokens + text_tokens) * 2 * d * ffn
    if sizes["cross_attention"]:
        block += _attention(image_tokens, text_tokens, d) + _attention(text_tokens, image_tokens, d)
    parts = 2 + int(sizes["product"]) + int(sizes["difference"])
    return 2 * (projections + int(sizes["layers"]) * block + parts * d * head + head * int(sizes["outputs"]))


def _attention(queries: int, keys: int, d: int) -> int:
    """Return the multiplications of one direction: one projection for a single key, else four plus two products."""
    return d * d if keys == 1 else 2 * queries * d * d + 2 * keys * d * d + 2 * queries * keys * d


def fusion_bytes(network: nn.Module, flops_a_pair: int, sizes: Mapping[str, Any], pairs: int) -> int:
    """Return the minimum bytes that a batch of pooled pairs must move: weights, inputs and outputs, once each.

    Args:
        network: A fusion, fused for inference, for the size of its float32 numbers.
        flops_a_pair: `fusion_flops`; on pooled pairs every useful weight is one multiplication and one addition.
        sizes: The network's settings.
        pairs: Pairs in the batch.
    """
    number = next(network.parameters()).element_size()
    inputs_and_outputs = int(sizes["image_dim"]) + int(sizes["text_dim"]) + int(sizes["outputs"])
    return number * (flops_a_pair // 2 + pairs * inputs_and_outputs)


def transformer_flops(*, tokens: int, width: int, ffn_width: int, layers: int) -> int:
    """Return an encoder's operations per item: each layer has four projections, two attention products and an MLP."""
    return 2 * layers * (4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * ffn_width)


def counted_flops(network: nn.Module, *inputs: Tensor, **named: Tensor) -> int:
    """Return the operations that PyTorch counts in one call; on ``meta`` tensors nothing is computed."""
    # PyTorch 2.13 does not count the operations of its own attention on a CPU.
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_count}
    with FlopCounterMode(display=False, custom_mapping=attention) as counter, torch.no_grad():
        network(*inputs, **named)
    return int(counter.get_total_flops())


def _attention_count(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]
