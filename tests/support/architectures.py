"""Image classifiers of many kinds, small, in plain torch: the patterns that networks of a model zoo are made of."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 5
SIDE = 32


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if act else []))


class BasicBlock(nn.Module):
    """ResNet's: the ReLU is one module, called twice, and the sum is made in place."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = conv(inputs, outputs, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 8, 1))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2), BasicBlock(16, 16, 1))
        self.layer3 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32, 1))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels, gate):
        super().__init__()
        self.down, self.up, self.gate = (
            nn.Conv2d(channels, channels // 4, 1),
            nn.Conv2d(channels // 4, channels, 1),
            gate,
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class InvertedResidual(nn.Module):
    """MobileNetV3's and EfficientNet's."""

    def __init__(self, inputs, outputs, stride, act, gate, drop=0.0):
        super().__init__()
        hidden = 4 * inputs
        self.same = stride == 1 and inputs == outputs
        self.block = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            act(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            act(inplace=True),
            SqueezeExcite(hidden, gate()),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        if self.same:
            if self.drop and self.training:  # stochastic depth
                out = out * (torch.rand(len(x), 1, 1, 1) >= self.drop) / (1 - self.drop)
            out = x + out
        return out


class MobileNetV3(nn.Module):
    def __init__(self, act=nn.Hardswish, gate=nn.Hardsigmoid, drop=0.0):
        super().__init__()
        widths = [(8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 24, 2), (24, 24, 1)]
        blocks = [InvertedResidual(a, b, s, act, gate, drop) for a, b, s in widths]
        self.features = nn.Sequential(conv(3, 8, stride=2), *blocks, conv(24, 64, 1))
        self.classifier = nn.Sequential(nn.Linear(64, 32), act(inplace=True), nn.Dropout(0.2), nn.Linear(32, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(x.view(x.size(0), -1))


def efficientnet() -> nn.Module:
    return MobileNetV3(nn.SiLU, nn.Sigmoid, drop=0.2)


class ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(0.5 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, 8, 2, 2), ChannelsFirstNorm(8)),
                nn.Sequential(ChannelsFirstNorm(8), nn.Conv2d(8, 16, 2, 2)),
                nn.Sequential(ChannelsFirstNorm(16), nn.Conv2d(16, 32, 2, 2)),
            ]
        )
        self.stages = nn.ModuleList(nn.Sequential(ConvNeXtBlock(w), ConvNeXtBlock(w)) for w in (8, 16, 32))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(3):
            x = self.stages[i](self.downsample_layers[i](x))
        return self.head(self.norm(x.mean([-2, -1])))


class PatchEmbed(nn.Module):
    """Checks the size of its images, which torch.fx cannot follow."""

    def __init__(self, width, patch=8):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != SIDE:
            raise ValueError(f"images are {SIDE} pixels wide")
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, width, heads=2):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class TransformerBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """With a class token, and timm's way of saying so; `tokens` 2 adds DeiT's distillation token and its head."""

    def __init__(self, tokens=1, width=16, depth=4):
        super().__init__()
        self.tokens = tokens
        self.patch_embed = PatchEmbed(width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.dist_token = nn.Parameter(torch.randn(1, 1, width)) if tokens == 2 else None
        self.pos_embed = nn.Parameter(torch.randn(1, (SIDE // 8) ** 2 + tokens, width))
        self.pos_drop = nn.Dropout(0.1)
        self.blocks = nn.Sequential(*(TransformerBlock(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)
        self.head_dist = nn.Linear(width, CLASSES) if tokens == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = self.patch_embed(x)
        learned = [self.cls_token.expand(b, -1, -1)]
        if self.dist_token is not None:
            learned.append(self.dist_token.expand(b, -1, -1))
        x = self.pos_drop(torch.cat([*learned, x], dim=1) + self.pos_embed)
        x = self.norm(self.blocks(x))
        if self.head_dist is None:
            return self.head(x[:, 0])
        return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2


def deit() -> nn.Module:
    return ViT(tokens=2)


class MeanViT(nn.Module):
    """Without a class token, of torch's own encoder."""

    def __init__(self, width=16):
        super().__init__()
        self.proj = nn.Conv2d(3, width, 8, 8)
        self.pos = nn.Parameter(torch.randn(1, (SIDE // 8) ** 2, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.proj(x).flatten(2).transpose(1, 2) + self.pos
        return self.head(self.encoder(x).mean(1))


class DenseLayer(nn.Module):
    def __init__(self, inputs, growth=8):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    """All earlier features are kept in a list, as torchvision does."""

    def __init__(self, inputs, layers):
        super().__init__({f"denselayer{i}": DenseLayer(inputs + 8 * i) for i in range(layers)})

    def forward(self, first: Tensor) -> Tensor:
        features = [first]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        transition = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.Conv2d(32, 16, 1), nn.AvgPool2d(2))
        again = nn.Sequential(nn.BatchNorm2d(40), nn.ReLU(inplace=True), nn.Conv2d(40, 16, 1), nn.AvgPool2d(2))
        self.features = nn.Sequential(
            conv(3, 16, stride=2), DenseBlock(16, 2), transition, DenseBlock(16, 3), again, DenseBlock(16, 2)
        )
        self.classifier = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class RegNetBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        body = [conv(inputs, outputs, 1), conv(outputs, outputs, 3, stride, groups=outputs // 4)]
        self.f = nn.Sequential(*body, SqueezeExcite(outputs, nn.Sigmoid()), conv(outputs, outputs, 1, act=False))
        self.proj = conv(inputs, outputs, 1, stride, act=False) if stride > 1 or inputs != outputs else None
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.proj is not None:
            return self.activation(self.proj(x) + self.f(x))
        return self.activation(x + self.f(x))


class RegNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv(3, 8, stride=2)
        blocks = [RegNetBlock(8, 8, 1), RegNetBlock(8, 16, 2), RegNetBlock(16, 16, 1), RegNetBlock(16, 32, 2)]
        self.trunk_output = nn.Sequential(*blocks)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.trunk_output(self.stem(x))).flatten(start_dim=1))


def shuffled(x: Tensor, groups: int = 2) -> Tensor:
    b, c, h, w = x.size()
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


class ShuffleBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride, half = stride, outputs // 2
        first = inputs if stride > 1 else half
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(conv(inputs, inputs, 3, 2, inputs, act=False), conv(inputs, half, 1))
        self.branch2 = nn.Sequential(
            conv(first, half, 1), conv(half, half, 3, stride, half, act=False), conv(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            return shuffled(torch.cat((x1, self.branch2(x2)), dim=1))
        return shuffled(torch.cat((self.branch1(x), self.branch2(x)), dim=1))


class ShuffleNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8, stride=2)
        self.stage2 = nn.Sequential(ShuffleBlock(8, 16, 2), ShuffleBlock(16, 16, 1))
        self.stage3 = nn.Sequential(ShuffleBlock(16, 32, 2), ShuffleBlock(32, 32, 1))
        self.conv5, self.fc = conv(32, 48, 1), nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv5(self.stage3(self.stage2(self.conv1(x))))
        return self.fc(x.mean([2, 3]))


class InceptionBlock(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.branch1, self.branch3 = conv(inputs, width, 1), nn.Sequential(conv(inputs, width, 1), conv(width, width))
        self.branch5 = nn.Sequential(conv(inputs, width, 1), conv(width, width), conv(width, width))
        self.pool = conv(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([self.branch1(x), self.branch3(x), self.branch5(x), pooled], 1)


class Inception(nn.Module):
    """With an auxiliary classifier that only training uses, and input that is scaled by channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.mixed1, self.mixed2 = conv(3, 8, stride=2), InceptionBlock(8, 4), InceptionBlock(16, 8)
        self.pool, self.mixed3, self.aux = nn.MaxPool2d(2), InceptionBlock(32, 8), nn.Linear(16, CLASSES)
        self.dropout, self.fc = nn.Dropout(), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        red = torch.unsqueeze(x[:, 0], 1) * 0.9 + 0.1
        green, blue = torch.unsqueeze(x[:, 1], 1) * 0.8, torch.unsqueeze(x[:, 2], 1) * 0.7
        x = self.mixed1(self.stem(torch.cat((red, green, blue), 1)))
        if self.training:
            self.aux(x.mean((2, 3)))
        x = self.mixed3(self.pool(self.mixed2(x)))
        return self.fc(self.dropout(x.mean((2, 3))))


class MixerBlock(nn.Module):
    def __init__(self, tokens, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.stem = PatchEmbed(width)
        self.blocks = nn.Sequential(*(MixerBlock(16, width) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))).mean(dim=1))


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        parts = [conv(3, 8), nn.MaxPool2d(2), conv(8, 16), nn.MaxPool2d(2), conv(16, 32), conv(32, 32), nn.MaxPool2d(2)]
        self.features, self.avgpool = nn.Sequential(*parts), nn.AdaptiveAvgPool2d((4, 4))
        hidden = [nn.Linear(512, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(True), nn.Dropout()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Fire(nn.Module):
    def __init__(self, inputs, squeeze, expand):
        super().__init__()
        self.squeeze, self.act = nn.Conv2d(inputs, squeeze, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand3x3 = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.squeeze(x))
        return torch.cat([self.act(self.expand1x1(x)), self.act(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """Its classifier is a convolution, and the pooling after it the last layer."""

    def __init__(self):
        super().__init__()
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)  # one module in two places
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2), nn.ReLU(True), pool, Fire(16, 8, 16), Fire(32, 8, 16), pool, Fire(32, 8, 24)
        )
        final = nn.Conv2d(48, CLASSES, 1)
        self.classifier = nn.Sequential(nn.Dropout(), final, nn.ReLU(True), nn.AdaptiveAvgPool2d((1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class Swin(nn.Module):
    """Windows of tokens as maps with channels last, and patches that are merged."""

    def __init__(self, width=8):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        self.blocks1 = nn.Sequential(*(WindowBlock(width) for _ in range(2)))
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.blocks2 = nn.Sequential(*(WindowBlock(2 * width) for _ in range(2)))
        self.last, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks1(self.norm(self.patch(x).permute(0, 2, 3, 1)))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        x = self.last(self.blocks2(self.reduction(x)))
        return self.head(x.mean((1, 2)))


class WindowBlock(nn.Module):
    def __init__(self, width, window=2):
        super().__init__()
        self.window, self.norm1, self.attn = window, nn.LayerNorm(width), Attention(width)
        self.norm2, self.mlp = (
            nn.LayerNorm(width),
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        s = self.window
        y = self.norm1(x).view(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        y = self.attn(y).view(b, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + y
        return x + self.mlp(self.norm2(x))


class Deciding(nn.Module):
    """Its own forward looks at its images, as those of the transformers library do: torch.fx cannot trace it."""

    def __init__(self, width=16):
        super().__init__()
        self.embed = PatchEmbed(width)
        self.layers = nn.ModuleList(TransformerBlock(width) for _ in range(3))
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, pixel_values: Tensor, head_mask: Tensor | None = None, return_dict: bool = True):
        if pixel_values.shape[1] != 3:
            raise ValueError("expected three channels")
        if pixel_values.dtype != self.classifier.weight.dtype:
            pixel_values = pixel_values.to(self.classifier.weight.dtype)
        x = self.embed(pixel_values)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        for layer in self.layers:
            x = layer(x)
        logits = self.classifier(self.norm(x)[:, 0])
        return {"logits": logits} if return_dict else (logits,)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "resnet": ResNet,
    "mobilenet_v3": MobileNetV3,
    "efficientnet": efficientnet,
    "convnext": ConvNeXt,
    "vit": ViT,
    "deit": deit,
    "vit_without_class_token": MeanViT,
    "densenet": DenseNet,
    "regnet": RegNet,
    "shufflenet": ShuffleNet,
    "inception": Inception,
    "mixer": Mixer,
    "vgg": VGG,
    "squeezenet": SqueezeNet,
    "swin": Swin,
    "deciding": Deciding,
}
"""Functions that make a network for images (B, 3, 32, 32) and 5 classes."""


def architecture(name: str) -> nn.Module:
    """A network in evaluation mode, with norms that have seen images and weights that are not tiny."""
    torch.manual_seed(sum(map(ord, name)))
    module = ARCHITECTURES[name]()
    with torch.no_grad():
        for _ in range(2):
            module(torch.rand(8, 3, SIDE, SIDE))
    assert math.isfinite(sum(float(p.detach().abs().sum()) for p in module.parameters()))
    return module.eval()
