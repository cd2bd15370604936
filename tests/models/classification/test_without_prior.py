"""The network minus its prior: by hand, and every way of computing it against the definition."""

import pytest
import torch

from frevl.models.baselines import Linear, Mlp
from frevl.models.classification.without_prior import WithoutPrior
from frevl.models.kernel_ridge import KernelFusion
from frevl.models.registry import build

N, BANK, IMAGE, TEXT, CLASSES = 11, 5, 7, 3, 2


def inner(kind):
    torch.manual_seed(1)
    if kind == "mlp":
        return Mlp(image_dim=IMAGE, text_dim=TEXT, outputs=CLASSES).eval()
    network = KernelFusion(
        image_dim=IMAGE, text_dim=TEXT, outputs=CLASSES, pairs=6, images=4, texts=3, shares=(0.2, 0.3, 0.5)
    )
    for name, value in network.named_parameters():
        if name.endswith("rows"):
            value.data = torch.randint(0, 3, value.shape)
        elif name.endswith(("scale", "width")):
            value.data.fill_(1.3)
        elif value.is_floating_point():
            value.data = torch.randn(value.shape)
    return network.eval()


def test_by_hand():
    network = Linear(image_dim=1, text_dim=2, outputs=2)
    with torch.no_grad():
        network.linear.weight.copy_(torch.tensor([[1.0, 10.0, 0.0], [0.0, 0.0, 1.0]]))
    bank = torch.tensor([[2.0], [4.0]])
    less = WithoutPrior(network, bank, torch.ones(2, 1, dtype=torch.bool), kept="text", strength=0.5)
    image, text = torch.tensor([[6.0]]), torch.tensor([[1.0, 7.0]])
    # Logits 16 and 7; without the image 13 (the mean of 12 and 14) and 7.
    assert less.prior_logits(text).tolist() == [[13.0, 7.0]]
    assert less(image, text).tolist() == [[9.5, 3.5]]
    by_text = WithoutPrior(network, text, torch.ones(1, 1, dtype=torch.bool), kept="image", strength=1.0)
    assert by_text(image, text).tolist() == [[0.0, 0.0]]  # the only text of the bank is this one


@pytest.mark.parametrize("kind", ["mlp", "kernel"])
@pytest.mark.parametrize("kept", ["text", "image"])
def test_every_way_is_the_definition(kind, kept):
    network, random = inner(kind), torch.Generator().manual_seed(2)
    image, text = torch.randn(N, IMAGE, generator=random), torch.randn(N, TEXT, generator=random)
    bank = torch.randn(BANK, IMAGE if kept == "text" else TEXT, generator=random)
    less = WithoutPrior(network, bank, torch.ones(BANK, 1, dtype=torch.bool), kept=kept, strength=0.7).eval()
    with torch.inference_mode():
        alone = [
            network(*((bank[i].expand(N, -1), text) if kept == "text" else (image, bank[i].expand(N, -1))))
            for i in range(BANK)
        ]
        expected = network(image, text) - 0.7 * torch.stack(alone).mean(dim=0)
        torch.testing.assert_close(less(image, text), expected)
        torch.testing.assert_close(less.score_items(less.image_items(image), less.text_items(text)), expected)
        torch.testing.assert_close(less.for_inference()(image, text), expected)
        torch.testing.assert_close(less.for_export()(image, text), expected)
        twin = build(less.key, less.settings)
        twin.load_state_dict(less.state_dict())
        torch.testing.assert_close(twin.eval()(image, text), expected, rtol=1e-2, atol=1e-2)
        # One pair alone has the same logits: nothing depends on what else is scored.
        torch.testing.assert_close(less(image[3:4], text[3:4]), expected[3:4])


def test_tokens_of_the_bank_keep_their_mask():
    network, random = inner("mlp"), torch.Generator().manual_seed(3)
    bank, mask = torch.randn(BANK, 4, IMAGE, generator=random), torch.rand(BANK, 4, generator=random) < 0.6
    mask[:, 0] = True
    text = torch.randn(N, TEXT, generator=random)
    less = WithoutPrior(network, bank, mask, kept="text", strength=1.0)
    with torch.inference_mode():
        pooled = torch.stack([bank[i][mask[i]].mean(dim=0) for i in range(BANK)])
        expected = torch.stack([network(pooled[i].expand(N, -1), text) for i in range(BANK)]).mean(dim=0)
        torch.testing.assert_close(less.prior_logits(text), expected)


def test_strength_0_does_no_work_for_the_prior():
    network = inner("mlp")
    less = WithoutPrior(
        network, torch.randn(BANK, IMAGE), torch.ones(BANK, 1, dtype=torch.bool), kept="text", strength=0.0
    )
    image, text = torch.randn(N, IMAGE), torch.randn(N, TEXT)
    assert len(less.text_items(text)) == 1
    torch.testing.assert_close(less(image, text), network(image, text))
    assert less.prior_logits(text).shape == (N, CLASSES)
