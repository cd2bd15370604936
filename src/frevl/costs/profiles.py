"""Where the time of a call goes, operation by operation: what the page shows where a limit is missed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from frevl.costs import Record
from frevl.encoders.exported import library, one_thread

__all__ = ["onnx_profile", "torch_profile"]

_CALLS = 10
_SHOWN = 10
# What multiplies matrices, in PyTorch and in ONNX Runtime.
_PRODUCTS = {
    "aten::addmm", "aten::addmm_", "aten::mm", "aten::bmm", "aten::mkldnn_convolution",
    "MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv",
    "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
}  # fmt: skip


def torch_profile(name: str, call: Callable[[], object], *, calls: int = _CALLS) -> Record:
    """Profile PyTorch on one core: on several, the waiting for each other would be laid to some operation.

    Args:
        name: What is called, in words.
        call: To be profiled.
        calls: How often.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler announces itself on standard error
    with one_thread(), torch.inference_mode():
        call()
        with torch.autograd.profiler.profile(use_kineto=False) as profiled:
            for _ in range(calls):
                call()
    return _record(name, {event.key: float(event.self_cpu_time_total) for event in profiled.key_averages()})


def onnx_profile(name: str, network: Path, feeds: Mapping[str, np.ndarray], *, calls: int = _CALLS) -> Record:
    """Profile ONNX Runtime on one core.

    Args:
        name: What is run, in words.
        network: Its file.
        feeds: Inputs by name.
        calls: How often.
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
