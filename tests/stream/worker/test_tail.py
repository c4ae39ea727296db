"""The rest of a network goes on where the edge stopped."""

import numpy as np
import pytest
import torch

from eex.models.network import make
from eex.policies.core.errors import OffloadError
from eex.stream.worker.tail import make_tail


def test_the_tail_of_a_network_goes_on_where_the_edge_stopped():
    torch.manual_seed(0)
    net = make("resnet", ["a", "b", "c"], shares=(0.2, 0.6), input_shape=(3, 16, 16), width=8).eval()
    rest = make_tail(net)
    images = np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32)
    with torch.inference_mode():
        probabilities = net(torch.from_numpy(images))[-1].softmax(dim=1).numpy()
        features = net.stage(0, torch.from_numpy(images)).numpy()
    features.flags.writeable = False  # as off the wire
    for stage, x, tolerance in [(0, images, 1e-6), (1, features, 1e-6), (1, features.astype(np.float16), 1e-2)]:
        confidence, prediction = rest(stage, "pristine", x)
        np.testing.assert_allclose(confidence, probabilities.max(axis=1), atol=tolerance)
        np.testing.assert_array_equal(prediction, probabilities.argmax(axis=1))
    with pytest.raises(OffloadError, match=r"stage 1 takes features \(n, 8, 8, 8\), got \(3, 5\)"):
        rest(1, "pristine", np.zeros((3, 5), dtype=np.float32))
