"""I3D in PyTorch, with the names of pytorch-i3d (Carreira & Zisserman 2017, figure 3)."""

import torch
from torch import nn
from torch.nn import functional

# block -> widths of b0, b1a, b1b, b2a, b2b, b3b
BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def same(x, kernel, strides):
    """Pads as TensorFlow's SAME."""
    pads = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, strides, strict=True))):
        total = max(k - s if size % s == 0 else k - size % s, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads)


class Unit(nn.Module):
    def __init__(self, cin, cout, kernel=1, stride=1, norm=True):
        super().__init__()
        self.conv3d = nn.Conv3d(cin, cout, kernel, stride, bias=not norm)
        self.bn = nn.BatchNorm3d(cout, eps=1e-3) if norm else None

    def forward(self, x):
        x = self.conv3d(same(x, self.conv3d.kernel_size, self.conv3d.stride))
        return x if self.bn is None else functional.relu(self.bn(x))


def pool(x, kernel, strides):
    return functional.max_pool3d(same(x, kernel, strides), kernel, strides)


class Mixed(nn.Module):
    def __init__(self, cin, widths):
        super().__init__()
        self.b0 = Unit(cin, widths[0])
        self.b1a, self.b1b = Unit(cin, widths[1]), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(cin, widths[3]), Unit(widths[3], widths[4], 3)
        self.b3b = Unit(cin, widths[5])

    def forward(self, x):
        pooled = pool(x, (3, 3, 3), (1, 1, 1))
        parts = [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)]
        return torch.cat(parts, dim=1)


class I3D(nn.Module):
    def __init__(self):
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1, self.Conv3d_2c_3x3 = Unit(64, 64), Unit(64, 192, 3)
        width = 192
        for name, widths in BLOCKS.items():
            self.add_module(name, Mixed(width, widths))
            width = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = Unit(1024, 400, norm=False)

    def forward(self, x):
        x = pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in BLOCKS:
            if name == "Mixed_4b":
                x = pool(x, (3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                x = pool(x, (2, 2, 2), (2, 2, 2))
            x = getattr(self, name)(x)
        x = functional.avg_pool3d(x, (2, 7, 7), 1)
        return self.logits(x).mean((2, 3, 4))


def random_i3d():
    """Returns the network with random weights that keep the scale of activations."""
    torch.manual_seed(0)
    model = I3D().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model
