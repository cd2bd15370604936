"""A PyTorch network on one device: started and awaited, halved when memory runs out, CLIP's activation fused."""

import copy
import importlib

import numpy as np
import pytest
import torch
from torch import nn

from frevl.encoders.hub.torch_copy import TorchCopy, fold_quick_gelu
from frevl.encoders.onnx_session import Source
from frevl.encoders.registry import load_encoder
from frevl.encoders.runtime import BatchSizes, Network, open_in_torch
from frevl.errors import EncoderError


class Small(nn.Module):
    """A device whose memory ends above some inputs at once."""

    def __init__(self, most):
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, batch):
        self.seen.append(len(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return 10 * batch


def items(count):
    return [np.full(2, float(number), np.float32) for number in range(count)]


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_stays_so(caplog):
    small = Small(most=3)
    one = TorchCopy(small, "cpu")
    assert one.start(items(8))().tolist() == [[10.0 * n] * 2 for n in range(8)]
    assert one.most == 2
    assert small.seen == [8, 4, 2, 2, 2, 2]
    assert caplog.messages == [
        "frevl: cpu ran out of memory with 8 inputs at once; using 4 from now on.",
        "frevl: cpu ran out of memory with 4 inputs at once; using 2 from now on.",
    ]
    small.seen.clear()
    assert len(one(np.stack(items(5)))) == 5
    assert small.seen == [2, 2, 1]
    assert len(caplog.messages) == 2, "said once"


def test_one_input_that_does_not_fit_is_an_error_that_says_what_to_do():
    with pytest.raises(EncoderError, match="cpu: too little memory .* out of memory\\); stop other programs"):
        TorchCopy(Small(most=0), "cpu").start(items(2))


def test_runs_are_begun_ahead_and_outputs_keep_their_order(monkeypatch):
    order = []

    def start(self, share):
        order.append(f"begin {len(share)}")
        values = 10 * np.stack(share)
        return lambda: order.append("wait") or values

    monkeypatch.setattr(TorchCopy, "start", start)
    network = Network([TorchCopy(nn.Identity(), "cpu")], BatchSizes((2,)), "one device")
    assert [float(output[0]) for output in network(items(4))] == [0.0, 10.0, 20.0, 30.0]
    assert order == ["begin 2", "wait"] * 2, "the size is tried on runs that are timed alone"
    order.clear()
    assert [float(output[0]) for output in network(items(9))] == [10.0 * n for n in range(9)]
    assert order == ["begin 2"] * 3 + ["wait", "begin 2", "wait", "begin 1"] + ["wait"] * 3
    assert network([]) == []


def test_accelerators_are_asked_for_several_runs_at_once():
    source = Source(nn.Linear(2, 2), {}, [])
    assert open_in_torch(source, ["cpu"]).batch_size == 32
    assert open_in_torch(source, ["meta", "meta"]).batch_size == 4 * 256 * 2


@pytest.mark.slow
def test_the_activation_of_clip_is_folded_into_the_weights_around_it(pretrained):
    import transformers

    network = transformers.CLIPModel.from_pretrained(pretrained / "clip").vision_model.eval()
    pixels = torch.randn(3, 3, network.config.image_size, network.config.image_size)
    with torch.inference_mode():
        before = network(pixel_values=pixels).last_hidden_state
    with torch.inference_mode():
        after = fold_quick_gelu(network)(pixel_values=pixels).last_hidden_state
    assert {type(layer.mlp.activation_fn) for layer in network.encoder.layers} == {nn.SiLU}
    assert (after - before).abs().max() < 1e-5
    other = nn.Linear(2, 2)
    assert fold_quick_gelu(other) is other


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "modality"),
    [
        *((name, "image") for name in ("clip", "siglip", "siglip2", "chinese_clip", "dinov2")),
        *((name, "text") for name in ("clip", "siglip", "siglip2", "chinese_clip", "bert")),
    ],
)
@pytest.mark.parametrize(("option", "tokens"), [("", "pooled"), ("", "2x2"), ("#layers=-1,-2", "pooled")])
def test_a_copy_computes_with_its_own_weights(name, modality, option, tokens, pretrained, monkeypatch):
    # An accelerator runs a copy: a forward pass that reached for the original's weights would find them on the CPU.
    towers = importlib.import_module(f"frevl.encoders.hub.{modality}_tower")
    sources = []

    def kept(column, key, build, choice, *more):
        sources.append(build())
        return open_runtime(column, key, lambda: sources[-1], choice, *more)

    open_runtime = towers.open_runtime
    monkeypatch.setattr(towers, "open_runtime", kept)
    load_encoder(f"hf:{pretrained / name}#torch{option}", tokens=tokens)
    (source,) = sources
    example = torch.from_numpy(np.asarray(source.examples[0])[:1])
    with torch.inference_mode():
        expected = source.network(example)
        twin = copy.deepcopy(source.network)
        for parameter in source.network.parameters():
            parameter.zero_()
        assert torch.equal(twin(example), expected)
        assert not torch.equal(source.network(example), expected)
