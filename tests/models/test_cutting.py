"""Cutting a user's own module: same answers, shared weights, and one clear line for each mistake."""

import pytest
import torch
from torch import Tensor, nn

from eex.models.card import load, save
from eex.models.cutting import cut
from eex.models.fast import optimised
from eex.models.network import remake
from eex.models.training import Progress, Recipe, all_logits, fit
from eex.policies.core.errors import EexError

SHAPE = (3, 16, 16)
CLASSES = ("a", "b", "c")


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.conv2(self.relu(self.bn(self.conv1(x)))))


class Residual(nn.Module):
    """A small network with skip connections, a parameter of its own, in-place ReLUs and `view`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.layers = nn.Sequential(Block(8), Block(8))
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.pool = nn.AvgPool2d(4)
        self.hidden = nn.Linear(128, 10)
        self.fc = nn.Linear(10, 3)
        self.spare = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale  # read before the cuts, used behind them
        x = self.layers(self.relu(self.stem(x)))
        x = self.pool(x * scale)
        return self.fc(torch.relu(self.hidden(x.view(x.size(0), -1))))


@pytest.fixture
def own() -> Residual:
    torch.manual_seed(0)
    module = Residual()
    for _ in range(3):  # norms that differ from fresh ones
        module(torch.randn(8, *SHAPE))
    return module


@pytest.mark.parametrize(
    "after", [["stem", "layers.0", "layers"], ["layers.0", "layers.1"], ["relu", "pool", "hidden"], ["pool"]]
)
def test_same_final_logits_as_the_module(own, after):
    net = cut(own, after, CLASSES, input_shape=SHAPE).eval()
    own.eval()
    x = torch.rand(6, *SHAPE)
    outputs = net(x)
    torch.testing.assert_close(outputs[-1], own(x), rtol=0, atol=0)
    assert [tuple(o.shape) for o in outputs] == [(6, 3)] * len(after)


def test_sequential_with_flat_features_and_normalisation():
    torch.manual_seed(0)
    own = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 12), nn.ReLU(), nn.Linear(12, 3))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    net = cut(own, ["1", "4"], CLASSES, input_shape=SHAPE, structure="multi_fc", mean=mean, std=std)
    x = torch.rand(4, *SHAPE)
    normalised = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(net(x)[-1], own(normalised))
    assert net.stage(1, net.stage(0, x)).shape == (4, 12)


def test_parameters_are_shared_and_modes_kept(own):
    own.layers[0].eval()
    net = cut(own, ["layers.0", "layers.1"], CLASSES, input_shape=SHAPE)
    inside = {id(p) for p in net.parameters()}
    assert all(id(p) in inside for name, p in own.named_parameters() if not name.startswith("spare"))
    assert own.training
    assert net.training
    assert [block.bn.training for block in own.layers] == [False, True]
    own.eval()
    assert not cut(own, ["layers.0"], CLASSES, input_shape=SHAPE).training


def test_features_are_not_changed_in_place_by_the_next_stage(own):
    net = cut(own, ["stem", "layers"], CLASSES, input_shape=SHAPE).eval()
    features = net.stage(0, torch.rand(2, *SHAPE))
    before = features.clone()
    net.stage(1, features)
    assert torch.equal(features, before)


def test_architecture_experts_and_costs(own):
    net = cut(own, ["stem", "layers.0", "layers.1"], CLASSES, input_shape=SHAPE, partition=1)
    made = net.architecture
    assert (made.backbone, made.after, made.structures) == ("custom", (0, 1), ("conv_fc", "conv_fc", "custom"))
    assert net.partition == 1
    costs = net.costs()
    block = 2 * 256 * 8 * 72
    assert costs.stage_macs == (256 * 8 * 27, block, block)
    assert costs.branch_macs[-1] == 128 * 10 + 10 * 3
    assert costs.feature_bytes == (4 * 8 * 256,) * 3
    net.add_expert("gaussian_blur")
    net.eval()
    x = torch.rand(2, *SHAPE)
    assert torch.equal(net(x)[-1], net(x, "gaussian_blur")[-1])
    with torch.no_grad():
        net.branches[-1]["gaussian_blur"].fc.bias.add_(1)
    assert not torch.equal(net(x)[-1], net(x, "gaussian_blur")[-1])
    with pytest.raises(ValueError, match="unknown backbone 'custom'"):
        remake(made)


def test_trains_and_infers_channels_last(own):
    net = cut(own, ["stem", "layers.0", "layers.1"], CLASSES, input_shape=SHAPE)
    images = torch.randint(0, 256, (32, *SHAPE), dtype=torch.uint8)
    before = own.stem.weight.detach().clone()
    fit(net, images, torch.arange(32) % 3, Recipe(epochs=1, batch=16, lr=0.01))
    assert all_logits(net, images).shape == (3, 32, 3)
    assert not torch.equal(own.stem.weight, before)


def test_folded_and_packed_for_inference_it_answers_alike(own):
    net = cut(own, ["stem", "layers.0", "layers.1"], CLASSES, input_shape=SHAPE).eval()
    x = torch.rand(16, *SHAPE)
    with torch.inference_mode():
        torch.testing.assert_close(optimised(net)(x), net(x))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.two = Pair()
        self.fc = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.two(self.conv(self.conv(x)))
        return self.fc(a + b)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x * 2


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if x.sum() > 0 else -x


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.conv(x) * mask


class Optional(nn.Module):
    """Takes more than the images, all with defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3), nn.Linear(3, 3)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *rest: Tensor, scale: float = 2.0, **more: Tensor
    ) -> Tensor:
        x = self.conv(x) * scale
        if mask is not None:
            x = x * mask
        return self.fc(x.mean((2, 3)))


class Long(nn.Module):
    """The image itself is used again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x + self.conv(x))


class Listing(Long):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.fc(self.conv(x))]


def sequential() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3))


@pytest.mark.parametrize(
    ("make", "after", "message"),
    [
        (Residual, ["layer.0", "layers.1"], r"no layer 'layer.0'; did you mean 'layers.0'"),
        (Residual, ["xyz"], r"no layer 'xyz'; the first ones are \['stem'"),
        (Residual, [], "at least one layer"),
        (Residual, ["spare"], "'spare' is not reached"),
        (Twice, ["conv"], "'conv' is used 2 times"),
        (Residual, ["layers.1.relu"], "'layers.1.relu' is used 2 times"),
        (Twice, ["two"], "'two' must return one tensor, got a tuple"),
        (Residual, ["layers.1", "layers.0"], "in order of execution: 'layers.0' does not come after 'layers.1'"),
        (Residual, ["layers", "layers.1"], "in order of execution: 'layers.1' does not come after 'layers'"),
        (Residual, ["stem", "layers.0.conv1"], "cannot cut after 'layers.0.conv1': the output of layer 'relu' is used"),
        (Residual, ["layers.1.conv2"], "the output of layer 'layers.0.relu' is used after it, too"),
        (Long, ["conv"], "cannot cut after 'conv': the module's input is used after it"),
        (Branching, ["conv"], "torch.fx cannot trace the module: symbolically traced variables"),
        (Masked, ["conv"], r"forward must take the images alone, got \['x', 'mask'\]"),
        (Listing, ["conv"], "must return its logits alone, got a immutable_list"),
        (Residual, ["fc"], "nothing follows 'fc'"),
        (lambda: sequential()[:3], ["1"], r"must return logits \(B, 3\), one for each class, got \(2, 784\)"),
        (lambda: nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Flatten(), nn.Linear(768, 3)), ["0"], r"must give features"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(9, 3)), ["0"], r"cannot take images of sh"),
    ],
)
def test_each_mistake_gives_one_clear_line(make, after, message):
    with pytest.raises(EexError, match=message) as caught:
        cut(make(), after, CLASSES, input_shape=SHAPE)
    assert "\n" not in str(caught.value)


# ---- layers that are shared


def test_a_layer_in_two_places_is_named_by_either():
    relu = nn.ReLU()
    own = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.Flatten(), nn.Linear(576, 3))
    with pytest.raises(EexError, match=r"layer '3' \(it is the same module as '1'\) is used 2 times: cut"):
        cut(own, ["3"], CLASSES, input_shape=SHAPE)
    other = Residual()
    other.also = other.layers  # another name of what is called once
    assert cut(other, ["stem", "also"], CLASSES, input_shape=SHAPE).exits == 2


class Across(nn.Module):
    """One block in two stages and in the final exit, and a parameter that is worked on before the cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.one, self.two, self.fc = nn.Identity(), nn.Identity(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        half = self.fc.weight.mean() / 2
        x = self.two(self.block(self.one(self.block(self.stem(x)))))
        return self.fc(self.block(x).mean((2, 3)) * half)


@pytest.mark.parametrize("method", ["joint", "branch-wise", "two-stage"])
def test_a_block_in_several_stages_trains_and_comes_back(tmp_path, method):
    torch.manual_seed(0)
    net = cut(Across(), ["one", "two"], CLASSES, input_shape=SHAPE)
    images, labels = torch.randint(0, 256, (32, *SHAPE), dtype=torch.uint8), torch.arange(32) % 3
    fit(net, images, labels, Recipe(method=method, epochs=1, batch=16, lr=0.01), checkpoint=tmp_path / "part")
    save(net, tmp_path, half=False)
    again = load(tmp_path, net=cut(Across(), ["one", "two"], CLASSES, input_shape=SHAPE))
    x = torch.rand(4, *SHAPE)
    with torch.inference_mode():
        for a, b, c in zip(net(x), again(x), optimised(again)(x), strict=True):
            torch.testing.assert_close(a, b)
            torch.testing.assert_close(a, c)


def test_a_shared_block_stays_as_the_stages_before_it_need_it():
    net = cut(Across(), ["one", "two"], CLASSES, input_shape=SHAPE)
    images, labels = torch.randint(0, 256, (32, *SHAPE), dtype=torch.uint8), torch.arange(32) % 3
    seen: list[Tensor] = []

    def report(progress: Progress) -> None:
        if progress.phase == "exit 2":
            seen.append(torch.cat([v.flatten() for v in net.stages[0].state_dict().values()]))

    fit(net, images, labels, Recipe(method="branch-wise", epochs=2, batch=16, lr=0.1), report=report)
    assert all(torch.equal(first, seen[0]) for first in seen)


def test_weights_that_a_hook_computes_are_refused():
    own = sequential()
    nn.utils.spectral_norm(own[0])
    with pytest.raises(EexError, match=r"layer '0' has a .*use torch\.nn\.utils\.parametrizations\.spectral_norm"):
        cut(own, ["1"], CLASSES, input_shape=SHAPE)


def test_what_tracing_leaves_out_is_refused():
    own = sequential()
    own.register_forward_hook(lambda module, given, logits: logits * 2)
    with pytest.raises(EexError, match=r"the module does not answer as torch\.fx traces it: logits up to"):
        cut(own, ["1"], CLASSES, input_shape=SHAPE)


# ---- features whose channels lie last


class Windows(nn.Module):
    """Works with channels last between two convolutions, as Swin does.

    `place` is a learned position of each cell: with it, images of one size only can be taken.
    """

    def __init__(self, place: bool = False) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.place = nn.Parameter(torch.rand(4, 4, 8)) if place else 0.0
        self.mix, self.act, self.keep, self.last = nn.Linear(8, 8), nn.GELU(), nn.Identity(), nn.Identity()
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patch(x).permute(0, 2, 3, 1)) + self.place
        x = self.last(self.act(x + self.mix(x)).transpose(1, 2))
        return self.fc(self.keep(x.transpose(1, -2).permute(0, 3, 1, 2)).mean((2, 3)))


@pytest.mark.parametrize("place", [False, True])
def test_channels_that_lie_last_are_recognised(place):
    torch.manual_seed(0)
    own = Windows(place).eval()
    net = cut(own, ["patch", "norm", "act", "last", "keep"], CLASSES, input_shape=SHAPE, structure="conv_fc")
    assert [branch["pristine"][1].in_channels for branch in list(net.branches)[:-1]] == [8] * 4
    x = torch.rand(5, *SHAPE)
    features = net.stage(0, x)
    for i in (1, 2, 3, 4):
        features = net.stage(i, features)
        assert features.shape == (5, 8, 4, 4)
    with torch.inference_mode():
        torch.testing.assert_close(net(x)[-1], own(x))
        torch.testing.assert_close(optimised(net)(x), net(x))


def test_tokens_get_a_branch_on_their_mean():
    own = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Linear(16, 16), nn.Flatten(), nn.Linear(128, 3))
    net = cut(own, ["2", "3"], CLASSES, input_shape=SHAPE).eval()
    assert net.branches[0]["pristine"][1].normalized_shape == (16,)
    x = torch.rand(5, *SHAPE)
    torch.testing.assert_close(net(x)[-1], own(x))
    torch.testing.assert_close(optimised(net)(x)[0], net(x)[0])


def test_arguments_with_defaults_keep_them():
    own = Optional().eval()
    net = cut(own, ["conv"], CLASSES, input_shape=SHAPE)
    x = torch.rand(5, *SHAPE)
    torch.testing.assert_close(net(x)[-1], own(x))


class Sized(nn.Module):
    """Numbers that its input's shape gave before the cut are used after it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        heads, kind = 2 * b, x.dtype
        x = self.act(self.conv(x)).to(kind)
        return self.fc(x.reshape(heads, 2, h * w).mean(2).reshape(b, -1))


def test_sizes_may_cross_a_cut():
    own = Sized().eval()
    net = cut(own, ["act"], CLASSES, input_shape=SHAPE)
    for count in (1, 5):
        x = torch.rand(count, *SHAPE)
        torch.testing.assert_close(net(x)[-1], own(x))


class Counting(Sized):
    """Works with half the number of images, which two and three images have in common."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[0] // 2
        return super().forward(x) * (half * 2)


def test_what_is_reckoned_from_the_number_of_images_is_reckoned_anew():
    own = Counting().eval()
    net = cut(own, ["act"], CLASSES, input_shape=SHAPE)
    for count in (1, 9):
        x = torch.rand(count, *SHAPE)
        torch.testing.assert_close(net(x)[-1], own(x))


class InPlace(Sized):
    """Changes its features by way of a view of them, which is none where channels lie last."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x)) - 0.1
        x.view(x.size(0), -1).clamp_(min=0.1)
        return self.fc(x.mean((2, 3)))


def test_views_that_are_changed_in_place_are_refused():
    with pytest.raises(EexError, match="its forward may have hooks, change a view in place"):
        cut(InPlace().eval(), ["act"], CLASSES, input_shape=SHAPE)


def test_one_channel_needs_no_mean():
    own = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 3))
    assert cut(own, ["1"], CLASSES, input_shape=(1, 16, 16)).architecture.mean == (0.0,)


def test_other_arguments_are_checked():
    with pytest.raises(EexError, match="mean and std must name 1 channels"):
        cut(nn.Conv2d(1, 3, 16), ["0"], CLASSES, input_shape=(1, 16, 16), mean=(0.5, 0.5, 0.5))
    with pytest.raises(EexError, match=r"mean must be finite, and std more than 0, got \[0.5\] and \[0.0\]"):
        cut(nn.Conv2d(1, 3, 16), ["0"], CLASSES, input_shape=(1, 16, 16), mean=(0.5,), std=(0.0,))
    with pytest.raises(ValueError, match="unknown branch structure 'tree'"):
        cut(sequential(), ["0", "1"], CLASSES, input_shape=SHAPE, structure="tree")
    with pytest.raises(ValueError, match="partition point"):
        cut(sequential(), ["0", "1"], CLASSES, input_shape=SHAPE, partition=3)


def test_layers_are_named_in_a_list():
    with pytest.raises(EexError, match=r"layers to cut after are named in a list, \['13'\], got the text '13'"):
        cut(sequential(), "13", CLASSES, input_shape=SHAPE)
