"""What workers add up, each from its own texts, is the contrast of the whole batch, with its gradient."""

import pytest
import torch

from frevl.training.losses import batch_contrast
from frevl.training.workers.shared_contrast import shared_contrast


class Worker:
    """One of several workers, with what the others would send it."""

    def __init__(self, rank, sent):
        self.size, self._rank, self._sent = len(sent), rank, sent

    def share(self, count):
        assert count == self.size
        return self

    def gathered(self, row):
        assert torch.equal(row, self._sent[self._rank])
        own = self.size * row - (self.size - 1) * row.detach()  # its gradient is counted for all, as all are alike
        return torch.cat([own if rank == self._rank else row for rank, row in enumerate(self._sent)])

    def counted_once(self, loss):
        return loss / self.size


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("workers", [2, 3])
def test_the_parts_of_workers_add_up_to_the_whole(workers, smoothing):
    random = torch.Generator().manual_seed(3)
    # Images with several texts, and a text that describes two images: both are right for it.
    places = torch.tensor([0, 1, 2, 2, 3, 4, 4, 5, 1])
    texts = torch.tensor([7, 3, 9, 1, 3, 2, 8, 5, 4])
    whole = 20 * torch.randn(9, 6, generator=random, dtype=torch.double)
    whole.requires_grad_()
    expected = batch_contrast(whole, places, texts, label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(expected, whole)
    parts = torch.arange(9).tensor_split(workers)
    sent = [torch.logsumexp(whole[own], 0)[None].detach() for own in parts]
    added = sum(
        shared_contrast(whole[own], own, places, texts, label_smoothing=smoothing, team=Worker(rank, sent))
        for rank, own in enumerate(parts)
    )
    torch.testing.assert_close(added, expected)
    torch.testing.assert_close(torch.autograd.grad(added, whole)[0], gradient)


def test_far_apart_similarities_stay_finite():
    similarity = torch.tensor([[1e4, -1e4], [1e4, -1e4]], requires_grad=True)
    places, texts = torch.tensor([0, 1]), torch.tensor([0, 1])
    sent = [torch.logsumexp(row[None], 0)[None].detach() for row in similarity]
    parts = [
        shared_contrast(
            similarity[rank : rank + 1], torch.tensor([rank]), places, texts, label_smoothing=0, team=Worker(rank, sent)
        )
        for rank in range(2)
    ]
    torch.testing.assert_close(sum(parts), batch_contrast(similarity, places, texts))
    assert torch.isfinite(torch.autograd.grad(sum(parts), similarity)[0]).all()
