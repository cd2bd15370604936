"""The fusion on a chip: (a) the same scores as on a processor, (b) pairs per second, (c) steps of its training."""

from __future__ import annotations

import contextlib
import copy
import gc
import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from frevl.deployment.efficiency.profiles import fusion_flops
from frevl.models.fusion import Fusion
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.targets import Answers
from frevl.training.examples import Examples
from frevl.training.fitting import pairwise, recorded_steps
from frevl.training.fitting.pairwise import fusion_loss
from frevl.training.loop import gradient_descent
from frevl.training.options import FusionOptions, Session
from on_chip.measure import Chip, Record, graphed, kernel_profile, quotient, rate, timed

DIM, IMAGE_TOKENS, TEXT_TOKENS, CLASSES = 768, 49, 16, 3129
RECORDED = "bf16, recorded as frevl train does"
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def made_examples(chip: Chip, *, pairs: int, classes: int, seed: int = 0) -> Examples:
    """Draw unit embeddings whose class follows from image and text together: something that can be learned."""
    random = torch.Generator().manual_seed(seed)
    items = max(4, pairs // 4)
    dim = 32 if chip.quick else DIM
    images = nn.functional.normalize(torch.randn(items, 1, dim, generator=random), dim=-1).half()
    texts = nn.functional.normalize(torch.randn(items, 1, dim, generator=random), dim=-1).half()
    rows, columns = (torch.randint(items, (pairs,), generator=random) for _ in range(2))
    kinds = torch.randint(8, (2, items), generator=random)
    images[:, 0, :8] += nn.functional.one_hot(kinds[0], 8).half() * 0.6
    texts[:, 0, :8] += nn.functional.one_hot(kinds[1], 8).half() * 0.6
    right = (kinds[0][rows] * 8 + kinds[1][columns]) % classes
    every = torch.ones(items, 1, dtype=torch.bool)
    embedded = EmbeddedPairs(images, every, texts, every, rows, columns)
    return Examples(embedded, Answers(right[:, None], torch.ones(pairs, 1), soft=False), torch.arange(pairs))


def trained(chip: Chip) -> tuple[Fusion, Examples]:
    """Train a fusion for a moment through the product's own loop, on the device: its scores then have a meaning."""
    examples = made_examples(chip, pairs=64 if chip.quick else 40_000, classes=5 if chip.quick else 16)
    torch.manual_seed(0)
    dim = examples.pairs.images.shape[2]
    preset = "tiny" if chip.quick else "base"
    outputs = 5 if chip.quick else 16
    network = Fusion.from_preset(preset, image_dim=dim, text_dim=dim, outputs=outputs)
    options = FusionOptions(epochs=1 if chip.quick else 3, batch_size=32 if chip.quick else 512)
    session = Session(seed=0, time_limit=20, device=str(chip.device), progress=False)
    loss = fusion_loss(network, examples.on(chip.device), outputs, options=options, device=session.device)
    gradient_descent(network, loss, len(examples), options=options, session=session, title="made pairs", remedy="-")
    return network, examples


def same_scores(chip: Chip) -> Iterator[Record]:
    """(a) Logits on the device against those of a processor, and whether 10,000 pairs are ranked alike."""
    network, examples = trained(chip)
    count = 200 if chip.quick else 10_000
    pairs = examples.select(torch.arange(len(examples))[:count]).pairs
    image, text, _, _ = pairs.inputs(pairs.image_rows, pairs.text_rows)
    with torch.inference_mode():
        exact = network.for_inference()(image, text)
        spread = float(exact.std())
        reference = copy.deepcopy(network).to(chip.device, torch.float64)
        true = reference(image.to(chip.device).double(), text.to(chip.device).double()).cpu()
        for name, dtype in {"fp32": torch.float32, **HALF}.items():
            twin = network.for_inference().to(chip.device, dtype)
            found = twin(image.to(chip.device, dtype), text.to(chip.device, dtype)).float().cpu()
            worst = float((found - exact).abs().max())
            own = {"device": float((found - true).abs().max()), "processor": float((exact - true).abs().max())}
            top = float((found.argmax(1) == exact.argmax(1)).float().mean())
            title = f"largest difference of {exact.numel():,} logits from the processor's, {name}"
            details = {"spread_of_logits": spread, "same_class": top, "from_float64": own}
            alone = weights_rounded(network, dtype).to(chip.device)(image.to(chip.device), text.to(chip.device)).cpu()
            if dtype != torch.float32:
                details["rounding_the_weights_alone"] = float((alone - exact).abs().max())
            yield Record("a scores", title, worst, "logits", ratio=worst, goal=1e-5 if name == "fp32" else 1e-2,
                         at_most=True, details=details)  # fmt: skip
            tau = kendall_tau(exact[:, 0].to(chip.device), found[:, 0].to(chip.device))
            title = f"Kendall's tau of {len(exact):,} pairs ranked by their first logit, {name}"
            limit = kendall_tau(exact[:, 0].to(chip.device), alone[:, 0].to(chip.device))
            rounded = {} if dtype == torch.float32 else {"rounding_the_weights_alone": limit}
            yield Record("a scores", title, tau, "tau", ratio=tau, goal=0.999, details=rounded)


def weights_rounded(network: Fusion, dtype: torch.dtype) -> Fusion:
    """Return the network in its scoring form, in float32, with weights that were rounded to a type."""
    twin = network.for_inference()
    for parameter in twin.parameters():
        parameter.copy_(parameter.to(dtype).float())
    return twin


def kendall_tau(a: Tensor, b: Tensor) -> float:
    """Kendall's tau-a over all pairs of ``(n,)`` values, block by block."""
    concordant = 0
    for start in range(0, len(a), 1000):
        part = slice(start, start + 1000)
        signs = torch.sign(a[part, None] - a) * torch.sign(b[part, None] - b)
        concordant += int(signs.sum())
    return concordant / (len(a) * (len(a) - 1))


class Forms:
    """A fusion in the forms that are compared, all with the same weights."""

    def __init__(self, chip: Chip, preset: str, kind: str) -> None:
        torch.manual_seed(0)
        network = Fusion.from_preset(preset, image_dim=DIM, text_dim=DIM, outputs=1).eval()
        self.chip, self.kind, self.settings = chip, kind, network.settings
        self.networks: dict[str, nn.Module] = {
            "folded fp32": network.for_inference().to(chip.device),
            "eager fp32": network.to(chip.device),
        }
        if chip.cuda:  # a processor has no fast products in float16
            self.networks["folded fp16"] = network.cpu().for_inference().to(chip.device, torch.float16)
        if (preset == "base" and kind == "pooled") or chip.quick:
            # A processor without matrix instructions for it takes minutes in bfloat16.
            fast = network.cpu().for_inference().to(chip.device, torch.bfloat16 if chip.cuda else torch.float32)
            fast.sums_in_half = True
            self.networks["folded bf16"] = fast
        self.networks["eager fp32"] = network.to(chip.device)

    @property
    def flops(self) -> int:
        """Operations a pair of the folded network."""
        if self.kind == "pooled":
            return fusion_flops(self.settings)
        return fusion_flops(self.settings, image_tokens=IMAGE_TOKENS, text_tokens=TEXT_TOKENS)

    def inputs(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Random embeddings of a batch, about unit length."""
        shapes = ((batch, DIM), (batch, DIM)) if self.kind == "pooled" else (
            (batch, IMAGE_TOKENS, DIM), (batch, TEXT_TOKENS, DIM)
        )  # fmt: skip
        image, text = (self.chip.randn(*shape, dtype=dtype, seed=n).mul_(DIM**-0.5) for n, shape in enumerate(shapes))
        return image, text


def throughput(chip: Chip, kind: str, presets: tuple[str, ...] = ("base", "tiny")) -> Iterator[Record]:
    """(b) Pairs a second by preset, kind, batch and form; operations over those of the large product."""
    batches = {"pooled": (2,) if chip.quick else (1, 64, 1024, 8192, 65_536),
               "tokens": (2,) if chip.quick else (1, 64, 1024, 8192)}  # fmt: skip
    for preset in presets[-1:] if chip.quick else presets:
        forms = Forms(chip, preset, kind)
        compiled = {name: compiled_form(chip, net) for name, net in forms.networks.items() if "fp32" not in name}
        for batch in batches[kind]:
            with torch.inference_mode():
                yield from _one_batch(chip, forms, compiled, preset, batch)


def compiled_form(chip: Chip, network: nn.Module) -> nn.Module:
    """The network by ``torch.compile``, one compilation for all batches but 1; on a processor the network itself."""
    if not chip.cuda:
        return network
    torch._dynamo.config.cache_size_limit = 64  # type: ignore[attr-defined]
    return torch.compile(network, dynamic=True)  # type: ignore[return-value]


def _one_batch(chip: Chip, forms: Forms, compiled: dict[str, nn.Module], preset: str, batch: int) -> Iterator[Record]:
    calls: dict[str, Any] = {}
    large = batch > (1024 if forms.kind == "tokens" else 8192)
    for name, network in forms.networks.items():
        if large and "fp32" in name:
            continue
        inputs = forms.inputs(batch, next(network.parameters()).dtype)
        calls[name] = _bound(network, inputs)
        if name in compiled:
            calls[f"{name}, torch.compile"] = _bound(compiled[name], inputs)
            if not (large and forms.kind == "tokens"):
                for plain in (name, f"{name}, torch.compile"):
                    calls[f"{plain}, CUDA graph"] = graphed(chip, calls[plain])
    calls["product"] = big_product(chip, torch.bfloat16)
    found = timed(chip, calls, rounds=3 if forms.kind == "tokens" else None)
    product, work = found.pop("product"), product_flops(chip)
    shares = {form: quotient(product, seconds) * forms.flops * batch / work for form, seconds in found.items()}
    for form, seconds in found.items():
        name = f"{preset}, {forms.kind}, batch {batch:,}, {form}"
        yield rate("b throughput", name, seconds, batch, "pairs/s", share_of_product=shares[form])
    if preset == "base" and forms.kind == "pooled" and batch == 8192:
        for half, goal in (("bf16", 0.6), ("fp16", None)):
            best = max((form for form in shares if half in form), key=lambda form: shares[form])
            profile = {} if goal is None or shares[best] >= goal else kernel_profile(chip, calls[best])
            name = f"{preset}, pooled, batch {batch:,}, {best}: its operations over those of the bf16 product"
            yield Record("b throughput", name, shares[best], "share", ratio=shares[best], goal=goal,
                         details={"pairs_a_second": batch / statistics.median(found[best]), "profile": profile,
                                  "flops_a_pair": forms.flops})  # fmt: skip


def _bound(network: nn.Module, inputs: tuple[Tensor, Tensor]) -> Any:
    return lambda: network(*inputs)


def big_product(chip: Chip, dtype: torch.dtype) -> Any:
    """The call whose rate is the limit: a square product of random numbers."""
    side = 256 if chip.quick else 8192
    a, b = chip.randn(side, side, dtype=dtype), chip.randn(side, side, dtype=dtype, seed=1)
    return lambda: a @ b


def product_flops(chip: Chip) -> float:
    """Operations of `big_product`."""
    return 2.0 * (256 if chip.quick else 8192) ** 3


def training(chip: Chip) -> Iterator[Record]:
    """(c) Steps of ``base`` with the product's loss and optimiser, 3,129 classes, in fp32, tf32 and bf16."""
    graphs = "bf16, torch.compile and CUDA graphs"
    plan = [
        (256, ("bf16", RECORDED)),
        (1024, ("fp32", "tf32", "bf16", RECORDED)),
        (4096, ("bf16", RECORDED)),
        (8192, ("bf16", RECORDED)),
        # Last, for PyTorch's own graphs free memory that other recordings of a process use (cuBLAS workspaces).
        (4096, (graphs,)),
        (8192, (graphs,)),
        (16_384, (graphs,)),
    ]
    if not chip.cuda:
        plan = [(8, ("fp32", "bf16", RECORDED))]
    best: tuple[float, str, float, dict[str, float]] = (-1.0, "", 0.0, {})
    for batch, names in plan:
        classes = 5 if chip.quick else CLASSES
        examples = made_examples(chip, pairs=4 * batch, classes=classes)
        calls, flops, square = {}, 0.0, 0.0
        for name in names:
            calls[name], flops, square = training_step(chip, examples, classes, batch, name)
        calls["product"] = big_product(chip, torch.bfloat16)
        found = timed(chip, calls, rounds=3, least=0.3)
        product = found.pop("product")
        for name, seconds in found.items():
            share = quotient(product, seconds) * (flops + square) * batch / product_flops(chip)
            title = f"step of base, batch {batch:,}, {name}"
            profile = kernel_profile(chip, calls[name]) if "bf16" in name else {}
            busy = {"milliseconds_of_the_device": profile["milliseconds a call"]} if profile else {}
            shares = {"share_of_bf16_product": share, "share_of_the_network_alone": share * flops / (flops + square)}
            milliseconds = 1e3 * statistics.median(seconds)
            yield rate("c training", title, seconds, batch, "pairs/s", **shares, milliseconds=milliseconds, **busy)
            if "bf16" in name and share > best[0]:
                best = (share, title, milliseconds, {} if share >= 0.45 else profile)
        calls.clear()
        gc.collect()
    name = f"{best[1]}: its operations over those of the bf16 product"
    yield Record("c training", name, best[0], "share", ratio=best[0], goal=0.45,
                 details={"milliseconds": best[2], "profile": best[3]})  # fmt: skip


def training_step(chip: Chip, examples: Examples, classes: int, batch: int, name: str) -> tuple[Any, float, float]:
    """One optimiser step as `frevl.training.loop.gradient_descent` does it, on embeddings that are on the device.

    Beside it, its operations a pair: those of the network's products, and those of the contrastive term's.
    """
    torch.manual_seed(0)
    dim = examples.pairs.images.shape[2]
    network = Fusion.from_preset("tiny" if chip.quick else "base", image_dim=dim, text_dim=dim, outputs=classes)
    sizes = network.settings
    d, ffn, head = sizes["width"], sizes["ffn_width"], sizes["head_width"]
    projections = 2 * dim * d
    weights = sizes["layers"] * 2 * (2 * d * d + 2 * d * ffn) + 4 * d * head + head * classes
    flops = 2.0 * (2 * projections + 3 * weights)  # forward, of weights and, but for the embeddings, of inputs
    square = 3 * 2.0 * batch * d  # similarities of a pair with the batch, and the gradients of both sides
    network.to(chip.device).train()
    if chip.cuda:  # otherwise a compiled dropout draws number by number, PyTorch's own four at a time
        torch._inductor.config.fallback_random = True  # type: ignore[attr-defined]
    mode = {"bf16, torch.compile": "default", "bf16, torch.compile and CUDA graphs": "reduce-overhead"}.get(name, "")
    loss_of = fusion_loss(network, examples.on(chip.device), classes, options=FusionOptions(mixup_share=0.0),
                          device=str(chip.device), compiled=mode)  # fmt: skip
    trained = list(network.parameters())
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    recordings = contextlib.nullcontext if name == RECORDED else partial(mock.patch.object, recorded_steps, "_MOST", 0)
    random = torch.Generator().manual_seed(0)
    rows = torch.arange(batch)

    def step() -> None:
        if name == "tf32":
            torch.backends.cuda.matmul.allow_tf32 = True
        optimiser.zero_grad(set_to_none=True)
        if "bf16" in name:
            with recordings():
                loss = loss_of(rows, random)[0]
        else:
            exact = mock.patch.object(pairwise, "bfloat16_on_accelerators", return_value=contextlib.nullcontext())
            with exact, recordings():
                loss = loss_of(rows, random)[0]
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        if name == "tf32":
            torch.backends.cuda.matmul.allow_tf32 = False

    for _ in range(4):
        step()  # recorded in the third
    return step, flops, square
