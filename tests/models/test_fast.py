"""The form that infers fast answers as the network does, and its classifier as the classifier does."""

import pytest
import torch

from eex.models.cutting import cut
from eex.models.fast import optimised
from eex.models.network import make
from eex.models.spectrum import DistortionClassifier
from eex.policies.core.errors import EexError


@pytest.mark.parametrize("backbone", ["resnet", "alexnet", "mobilenet_v2"])
@pytest.mark.parametrize("batch", [1, 16])
def test_folded_and_packed_for_inference_they_answer_alike(backbone, batch):
    net = make(backbone, "abc", uniform=2, input_shape=(3, 32, 32))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # norms that differ from fresh ones
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    net.eval()
    x = torch.rand(batch, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(optimised(net)(x), net(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 8, 9])
@pytest.mark.parametrize("size", [(32, 32), (16, 16), (17, 33), (48, 20), (64, 64)])
def test_a_fast_classifier_says_the_same(batch, size):
    torch.manual_seed(1)
    net = make("resnet", "ab", uniform=1, width=8)
    net.classifier = DistortionClassifier()
    for module in net.classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    fast = optimised(net.eval())
    for images in (torch.rand(batch, 3, *size), torch.zeros(batch, 3, *size)):
        for x in (images, images.contiguous(memory_format=torch.channels_last)):
            with torch.inference_mode():
                torch.testing.assert_close(fast.classifier(x), net.classifier(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 3, 15, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_a_fast_classifier_refuses_the_same(shape):
    net = make("resnet", "ab", uniform=1, width=8)
    net.classifier = DistortionClassifier()
    with pytest.raises(EexError, match="expected images"):
        optimised(net.eval()).classifier(torch.zeros(shape))


def test_half_precision_keeps_the_answers():
    net = make("resnet", "abcdefghij", uniform=2, width=16).eval()
    x = torch.rand(32, 3, 32, 32)
    with torch.inference_mode():
        half, full = optimised(net, torch.bfloat16)(x), net(x)
    for a, b in zip(half, full, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).abs().max() < 0.05 * b.abs().max()


class Tied(torch.nn.Module):
    """One convolution and norm, called three times within a stage."""

    def __init__(self):
        super().__init__()
        self.stem, self.tied = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.end, self.head = torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = self.norm(self.tied(x)).relu()
        return self.head(self.end(x).mean((2, 3)))


def test_a_layer_called_more_than_once_is_not_folded_per_call():
    net = cut(Tied(), ["end"], "ab", input_shape=(3, 32, 32))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.1, 0.3)
    net.eval()
    x = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(optimised(net)(x), net(x), rtol=1e-3, atol=1e-4)
