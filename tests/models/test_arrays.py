"""What is done with arrays of either kind: here, what a distortion classifier's logits come to."""

import numpy as np
import pytest

from eex.models.arrays import choose_experts

LOGITS = np.log(np.array([[0.1, 0.7, 0.2], [0.4, 0.35, 0.25], [0.3, 0.2, 0.5]], dtype=np.float32))


def test_the_most_probable_expert_is_chosen_or_none_is_known():
    experts, named, probabilities = choose_experts(LOGITS, 0.45)
    assert experts.tolist() == [1, 0, 2]
    assert named.tolist() == [1, 3, 2]
    np.testing.assert_allclose(probabilities, np.exp(LOGITS), rtol=1e-5)
    experts, named, _ = choose_experts(LOGITS, 0.6)
    assert (experts.tolist(), named.tolist()) == ([1, 0, 0], [1, 3, 3])  # the first expert takes them
    experts, named, _ = choose_experts(LOGITS * 1000, 0.0)  # never abstains
    assert (experts.tolist(), named.tolist()) == ([1, 0, 2], [1, 0, 2])


@pytest.mark.parametrize("below", [0.0, 0.45, 0.6])
def test_one_image_is_taken_for_what_it_is_taken_for_among_others(below):
    together = choose_experts(LOGITS, below)
    for k in range(len(LOGITS)):
        for alone, among in zip(choose_experts(LOGITS[k : k + 1], below), together, strict=True):
            np.testing.assert_allclose(alone[0], among[k], rtol=1e-12)
