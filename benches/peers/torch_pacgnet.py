"""PACGNet as PyTorch modules: two YOLOv8-like backbones with gates between them, and their oriented loss.

The modules have the names of the published state dict, so that weights can be exchanged; what they compute follows
arXiv 2512.18291 and YOLOv8's oriented head. `torch_scan.py` offers it to gatekit-bench.
"""

import math
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

EPSILON, MOMENTUM = 1e-3, 0.03


def norm(channels):
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=MOMENTUM)


def conv(from_, to, kernel=1, stride=1, groups=1, bias=False):
    return nn.Conv2d(from_, to, kernel, stride, kernel // 2, groups=groups, bias=bias)


class Conv(nn.Module):
    def __init__(self, from_, to, kernel=1, stride=1):
        super().__init__()
        self.conv = conv(from_, to, kernel, stride)
        self.bn = norm(to)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, channels, residual):
        super().__init__()
        self.cv1, self.cv2, self.residual = Conv(channels, channels, 3), Conv(channels, channels, 3), residual

    def forward(self, x):
        y = self.cv2(self.cv1(x))
        return x + y if self.residual else y


class C2f(nn.Module):
    def __init__(self, from_, to, depth, residual):
        super().__init__()
        half = to // 2
        self.cv1, self.cv2 = Conv(from_, 2 * half), Conv((2 + depth) * half, to)
        self.m = nn.ModuleList(Bottleneck(half, residual) for _ in range(depth))

    def forward(self, x):
        pieces = list(self.cv1(x).chunk(2, 1))
        for bottleneck in self.m:
            pieces.append(bottleneck(pieces[-1]))
        return self.cv2(torch.cat(pieces, 1))


class SPPF(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels // 2), Conv(2 * channels, channels)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        pieces = [self.cv1(x)]
        for _ in range(3):
            pieces.append(self.pool(pieces[-1]))
        return self.cv2(torch.cat(pieces, 1))


class Separable(nn.Module):
    def __init__(self, channels, kernel):
        super().__init__()
        self.depthwise, self.pointwise = conv(channels, channels, kernel, groups=channels), conv(channels, channels)
        self.norm_dw, self.norm_pw = norm(channels), norm(channels)

    def forward(self, x):
        return F.silu(self.norm_pw(self.pointwise(F.silu(self.norm_dw(self.depthwise(x))))))


class Residual(nn.Module):
    def __init__(self, channels, kernel):
        super().__init__()
        self.conv = Separable(channels, kernel)

    def forward(self, x):
        return x + self.conv(x)


class Refinement(nn.Module):
    def __init__(self, channels, kernel, count):
        super().__init__()
        self.blocks = nn.Sequential(*(Residual(channels, kernel) for _ in range(count)))

    def forward(self, x):
        return self.blocks(x)


class CrossGatingLayer(nn.Module):
    def __init__(self, channels, kernel=3, bottlenecks=1, reduction=4, dropout=0.1):
        super().__init__()

        def projection():
            inner = max(1, channels // reduction)
            return nn.Sequential(conv(channels, inner), norm(inner), nn.SiLU(), conv(inner, channels), norm(channels))

        def attention():
            return nn.Sequential(conv(channels, 1, bias=True), nn.Sigmoid())

        self.feat_extractor_rgb = Refinement(channels, kernel, bottlenecks)
        self.feat_extractor_ir = Refinement(channels, kernel, bottlenecks)
        self.spatial_attention_generator_from_ir, self.spatial_attention_generator_from_rgb = attention(), attention()
        self.ir_to_rgb_projection, self.rgb_to_ir_projection = projection(), projection()
        self.gate_generator_for_rgb_guidance = conv(channels, channels, bias=True)
        self.gate_generator_for_ir_guidance = conv(channels, channels, bias=True)
        self.norm_rgb_out, self.norm_ir_out = norm(channels), norm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, r, i):
        a, b = self.dropout(self.feat_extractor_rgb(r)), self.dropout(self.feat_extractor_ir(i))
        m_r, m_i = self.spatial_attention_generator_from_ir(b), self.spatial_attention_generator_from_rgb(a)
        u_r, u_i = self.ir_to_rgb_projection(b), self.rgb_to_ir_projection(a)
        g_r = torch.sigmoid(self.gate_generator_for_rgb_guidance(u_r))
        g_i = torch.sigmoid(self.gate_generator_for_ir_guidance(u_i))
        r = self.norm_rgb_out(r + a * (1 + m_r) + self.dropout(g_r * u_r))
        i = self.norm_ir_out(i + b * (1 + m_i) + self.dropout(g_i * u_i))
        return r, i


class SymmetricalCrossGating(nn.Module):
    def __init__(self, channels, layers=1):
        super().__init__()
        self.fusion_layers = nn.ModuleList(CrossGatingLayer(channels) for _ in range(layers))

    def forward(self, r, i):
        for layer in self.fusion_layers:
            r, i = layer(r, i)
        return r, i


class SpatialGate(nn.Module):
    def __init__(self, channels, inner):
        super().__init__()
        self.gate = nn.Sequential(
            conv(channels, inner, 3, 2), norm(inner), nn.SiLU(inplace=True), conv(inner, 1, bias=True), nn.Sigmoid()
        )

    def forward(self, x):
        return self.gate(x)


class PyramidalFeatureGating(nn.Module):
    def __init__(self, channels, least=16, gate_ratio=2, interaction_ratio=2):
        super().__init__()
        self.spatial_gate = SpatialGate(channels, max(least, channels // 2 // gate_ratio))
        inner = max(2 * least, channels // interaction_ratio)
        self.modality_interaction = nn.Sequential(
            conv(2 * channels, inner), norm(inner), nn.ReLU(inplace=True), conv(inner, 2 * channels, bias=True)
        )
        self.softmax_gate = conv(2 * channels, 2, bias=True)

    def forward(self, r, i, r_before, i_before):
        s = self.spatial_gate(torch.cat([r_before, i_before], 1))
        z = self.modality_interaction(torch.cat([r, i], 1))
        z_r, z_i = z.chunk(2, 1)
        w_r, w_i = self.softmax_gate(z).softmax(1).chunk(2, 1)
        return (w_r * z_r + w_i * z_i) * (1 + s)


class Head(nn.Module):
    def __init__(self, channels, classes, bins, least=16):
        super().__init__()
        widths = [max(least, channels[0] // 4, 4 * bins), max(channels[0], min(classes, 100)), max(channels[0] // 4, 1)]

        def branches(inner, to):
            return nn.ModuleList(
                nn.Sequential(Conv(x, inner, 3), Conv(inner, inner, 3), conv(inner, to, bias=True)) for x in channels
            )

        self.cv2, self.cv3, self.cv4 = (branches(*pair) for pair in zip(widths, (4 * bins, classes, 1)))
        for level, stride in enumerate((8, 16, 32)):
            nn.init.constant_(self.cv2[level][2].bias, 1.0)
            nn.init.constant_(self.cv3[level][2].bias, math.log(5 / classes / (640 / stride) ** 2))

    def forward(self, levels):
        maps = [torch.cat([self.cv2[n](x), self.cv3[n](x)], 1) for n, x in enumerate(levels)]
        angle = torch.cat([self.cv4[n](x).flatten(2) for n, x in enumerate(levels)], 2)
        return maps, angle


class PacgNet(nn.Module):
    def __init__(self, classes=5, channels=(16, 32, 64, 128, 256), depths=(1, 2, 2, 1), neck_depth=1, bins=16):
        super().__init__()
        c1, c2, c3, c4, c5 = channels
        d2, d3, d4, d5 = depths
        model = {}
        for at in (0, 4):
            model |= {at: Conv(3, c1, 3, 2), at + 1: Conv(c1, c2, 3, 2), at + 2: C2f(c2, c2, d2, True)}
            model[at + 3] = Conv(c2, c3, 3, 2)
        for at, c, d, next_ in ((8, c3, d3, c4), (13, c4, d4, c5)):
            model[at] = SymmetricalCrossGating(c)
            for stream in (at + 1, at + 3):
                model |= {stream: C2f(c, c, d, True), stream + 1: Conv(c, next_, 3, 2)}
        model[18] = SymmetricalCrossGating(c5)
        for at in (19, 21):
            model |= {at: C2f(c5, c5, d5, True), at + 1: SPPF(c5)}
        model |= {23: PyramidalFeatureGating(c3), 24: PyramidalFeatureGating(c4), 25: PyramidalFeatureGating(c5)}
        model |= {28: C2f(c5 + c4, c4, neck_depth, False), 31: C2f(c4 + c3, c3, neck_depth, False)}
        model |= {32: Conv(c3, c3, 3, 2), 34: C2f(c3 + c4, c4, neck_depth, False)}
        model |= {35: Conv(c4, c4, 3, 2), 37: C2f(c4 + c5, c5, neck_depth, False)}
        model[38] = Head((c3, c4, c5), classes, bins)
        self.model = nn.ModuleDict({str(at): model[at] for at in sorted(model)})
        self.classes, self.bins = classes, bins

    def at(self, index, *inputs):
        return self.model[str(index)](*inputs)

    def gated(self, rgb, ir, gates=True):
        """The fused levels; without gates the maps pass the cross-gating as they are, and levels are added."""
        r2 = self.at(2, self.at(1, self.at(0, rgb)))
        i2 = self.at(6, self.at(5, self.at(4, ir)))
        r, i = self.at(3, r2), self.at(7, i2)
        levels, before = [], (r2, i2)
        for cross, stages, downs, fuse in ((8, (9, 11), (10, 12), 23), (13, (14, 16), (15, 17), 24), (18, (19, 21), (20, 22), 25)):
            r, i = self.at(cross, r, i) if gates else (r, i)
            r, i = self.at(stages[0], r), self.at(stages[1], i)
            if fuse == 25:
                r, i = self.at(20, r), self.at(22, i)
            levels.append(self.at(fuse, r, i, *before) if gates else r + i)
            before = (r, i)
            if fuse != 25:
                r, i = self.at(downs[0], r), self.at(downs[1], i)
        return levels

    def forward(self, rgb, ir, gates=True):
        f3, f4, f5 = self.gated(rgb, ir, gates)

        def up(x):
            return F.interpolate(x, scale_factor=2, mode="nearest")

        t4 = self.at(28, torch.cat([up(f5), f4], 1))
        n3 = self.at(31, torch.cat([up(t4), f3], 1))
        n4 = self.at(34, torch.cat([self.at(32, n3), t4], 1))
        n5 = self.at(37, torch.cat([self.at(35, n4), f5], 1))
        return self.at(38, [n3, n4, n5])


# Decoding, assignment and losses


def decode(maps, angle, classes, bins):
    """Boxes [B, A, 5] in cells, bins [B, A, 4, bins], logits [B, A, classes], centres [A, 2], strides [A, 1]."""
    joined = torch.cat([x.flatten(2) for x in maps], 2).transpose(1, 2)
    batch, count, _ = joined.shape
    sides, logits = joined.split((4 * bins, classes), 2)
    sides = sides.reshape(batch, count, 4, bins)
    values = torch.arange(bins, dtype=sides.dtype)
    near, far = (sides.softmax(3) @ values).chunk(2, 2)
    theta = (angle.transpose(1, 2).sigmoid() - 0.25) * math.pi
    dx, dy = ((far - near) / 2).chunk(2, 2)
    cos, sin = theta.cos(), theta.sin()
    centres, strides = cells(maps)
    centre = torch.cat([dx * cos - dy * sin, dx * sin + dy * cos], 2) + centres
    return torch.cat([centre, near + far, theta], 2), sides, logits, centres, strides


def cells(maps):
    centres, strides = [], []
    for x, stride in zip(maps, (8, 16, 32)):
        height, width = x.shape[2:]
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centres.append(torch.stack([x, y], -1).reshape(-1, 2))
        strides.append(torch.full((height * width, 1), float(stride)))
    return torch.cat(centres), torch.cat(strides)


def covariance(boxes):
    a, b = boxes[..., 2].square() / 12, boxes[..., 3].square() / 12
    cos, sin = boxes[..., 4].cos(), boxes[..., 4].sin()
    return a * cos**2 + b * sin**2, a * sin**2 + b * cos**2, (a - b) * cos * sin


def prob_iou(first, second, eps=1e-7):
    """Of boxes that broadcast over all but the last axis."""
    (a1, b1, c1), (a2, b2, c2) = covariance(first), covariance(second)
    a, b, c = a1 + a2, b1 + b2, c1 + c2
    dx, dy = first[..., 0] - second[..., 0], first[..., 1] - second[..., 1]
    determinant = a * b - c**2
    t1 = (a * dy**2 + b * dx**2) / (determinant + eps) / 4
    t2 = -(c * dx * dy) / (determinant + eps) / 2
    own = (a1 * b1 - c1**2).clamp(min=0) * (a2 * b2 - c2**2).clamp(min=0)
    t3 = (determinant / (4 * own.sqrt() + eps) + eps).log() / 2
    distance = (t1 + t2 + t3).clamp(eps, 100)
    return 1 - (1 - (-distance).exp() + eps).sqrt()


@torch.no_grad()
def assign(boxes, scores, points, wanted, labels, topk=10, alpha=0.5, beta=6.0):
    """For pixels: the object of every cell [B, A], whether there is one, and the soft targets [B, A, classes]."""
    batch, count, classes = scores.shape
    objects = wanted.shape[1]
    d = points - wanted[:, :, None, :2]
    cos, sin = wanted[:, :, None, 4].cos(), wanted[:, :, None, 4].sin()
    along, across = d[..., 0] * cos + d[..., 1] * sin, d[..., 1] * cos - d[..., 0] * sin
    candidate = (along.abs() <= wanted[:, :, None, 2] / 2) & (across.abs() <= wanted[:, :, None, 3] / 2)
    similarity = torch.where(candidate, prob_iou(wanted[:, :, None], boxes[:, None]).clamp(min=0), 0.0)
    score = scores.transpose(1, 2).gather(1, labels[:, :, None].expand(-1, -1, count))
    worth = torch.where(candidate, score.pow(alpha), 0.0) * similarity.pow(beta)
    best = worth.topk(min(topk, count), 2).indices
    takes = torch.zeros_like(candidate).scatter_(2, best, True) & candidate
    contested = takes.sum(1, keepdim=True) > 1
    owner = F.one_hot(similarity.argmax(1), objects).transpose(1, 2).bool()
    takes = torch.where(contested, owner, takes)
    found, index = takes.any(1), takes.int().argmax(1)
    kept = takes.to(worth.dtype)
    largest = (similarity * kept).amax(2, keepdim=True) / ((worth * kept).amax(2, keepdim=True) + 1e-9)
    weight = (worth * kept * largest).amax(1)
    target = F.one_hot(labels.gather(1, index), classes) * (weight * found)[..., None]
    return index, found, target


def loss(model, output, wanted, labels, gains=(7.5, 0.5, 1.5)):
    """The total of the three losses, times the batch size."""
    maps, angle = output
    boxes, sides, logits, centres, strides = decode(maps, angle, model.classes, model.bins)
    pixels = torch.cat([boxes[..., :4] * strides, boxes[..., 4:]], 2)
    index, found, target = assign(pixels.detach(), logits.detach().sigmoid(), centres * strides, wanted, labels)
    total = target.sum().clamp(min=1)
    cls = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / total
    if not found.any():
        return (boxes.sum() * 0 + gains[1] * cls + sides.sum() * 0) * len(boxes)
    weight = target.sum(-1)[found]
    stride = strides.squeeze(1).expand(len(boxes), -1)[found][:, None]
    own = wanted.gather(1, index[..., None].expand(-1, -1, 5))[found]
    own = torch.cat([own[:, :4] / stride, own[:, 4:]], 1)
    box = ((1 - prob_iou(boxes[found], own)) * weight).sum() / total
    centre = centres.expand(len(boxes), -1, -1)[found]
    near, far = centre - (own[:, :2] - own[:, 2:4] / 2), own[:, :2] + own[:, 2:4] / 2 - centre
    ltrb = torch.cat([near, far], 1).clamp(0, model.bins - 1.01)
    below = ltrb.long()
    part = ltrb - below
    logs = sides[found].log_softmax(2)
    at = lambda bin: -logs.gather(2, bin[..., None]).squeeze(2)
    dfl = ((at(below) * (1 - part) + at(below + 1) * part).mean(1) * weight).sum() / total
    return (gains[0] * box + gains[1] * cls + gains[2] * dfl) * len(boxes)


# What gatekit-bench asks for

OBJECTS = 8


def side(shape):
    return -(-shape[1] // 32) * 32


def images(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape[0], 3, side(shape), side(shape), generator=generator) for _ in range(2)]


def objects(shape):
    generator = torch.Generator().manual_seed(2)
    u = torch.rand(shape[0], OBJECTS, 5, generator=generator)
    low = torch.tensor([0.1 * side(shape), 0.1 * side(shape), 8.0, 4.0, -0.7])
    span = torch.tensor([0.8 * side(shape), 0.8 * side(shape), 16.0, 8.0, 3.0])
    return low + span * u, torch.randint(5, u.shape[:2], generator=generator)


def even_weights(model):
    """Weights by the rule that gatekit-bench has: see `weights` in its `pacgnet.rs`."""
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    for index, name in enumerate(sorted(state)):
        place = torch.arange(1, state[name].numel() + 1, dtype=torch.float64)
        u = (place * 0.6180339887498949 + index * 0.7548776662466927) % 1.0
        if state[name].dim() == 4:
            u = (2 * u - 1) * math.sqrt(3 / state[name][0].numel())
        elif name.endswith("weight"):
            u = 0.75 + 0.5 * u
        elif name.endswith("running_var"):
            u = 0.5 + u
        else:
            u = 0.4 * u - 0.2
        state[name].copy_(u.reshape(state[name].shape))


def fused(model):
    """The same network with every block's normalisation folded into its convolution, as YOLOv8 does before inference."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in model.modules():
        if isinstance(module, Conv):
            module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()
    return model


def fastest(forms):
    """The fastest of some functions, by the second of two calls."""
    timed = []
    for form in forms:
        form()
        start = time.perf_counter()
        form()
        timed.append((time.perf_counter() - start, form))
    return min(timed, key=lambda entry: entry[0])[1]


class Network:
    """Inference and a training step."""

    op, form, step = "pacgnet", "PyTorch, the fastest of its forms", None

    def passes(self):
        return ["forward", "forward+backward"]

    def prepare(self, request):
        shape = request["shape"]
        rgb, ir = images(shape, request["seed"])
        if request["pass"] == "forward":
            return fastest(self.inference(memory, fold, rgb, ir) for memory in MEMORY for fold in (False, True))
        return fastest(self.training(memory, rgb, ir, *objects(shape)) for memory in MEMORY)

    def inference(self, memory, fold, rgb, ir):
        model = PacgNet().eval()
        model = (fused(model) if fold else model).to(memory_format=memory)
        rgb, ir = (image.to(memory_format=memory) for image in (rgb, ir))

        def forward():
            with torch.inference_mode():
                model(rgb, ir)

        return forward

    def training(self, memory, rgb, ir, wanted, labels):
        model = PacgNet().train().to(memory_format=memory)
        rgb, ir = (image.to(memory_format=memory) for image in (rgb, ir))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.937, weight_decay=5e-4, fused=True)

        def step():
            optimizer.zero_grad()
            loss(model, model(rgb, ir), wanted, labels).backward()
            optimizer.step()

        return step

    def compare(self, request):
        model = PacgNet().eval()
        with torch.no_grad():
            even_weights(model)
            size = (request["shape"][0], 3, side(request["shape"]), side(request["shape"]))
            maps, angle = model(*(torch.tensor(request["inputs"][name]).reshape(size) for name in ("rgb", "ir")))
        return torch.cat([x.flatten() for x in (*maps, angle)]).tolist()


class Convolutions:
    """All convolutions of the network, each over an input of its size."""

    op, form, step = "pacgnet-convolutions", "PyTorch, the fastest of its forms", None

    def passes(self):
        return ["forward", "forward+backward"]

    def prepare(self, request):
        return fastest(self.calls(memory, request) for memory in MEMORY)

    def calls(self, memory, request):
        model, found = PacgNet().eval(), []
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda module, inputs, _: found.append((module, inputs[0].shape)))
        with torch.no_grad():
            model(*images(request["shape"], 0))
        backward = request["pass"] != "forward"
        draw = lambda size: (0.1 * torch.randn(size)).to(memory_format=memory).requires_grad_(backward)
        all = [(draw(size), draw(one.weight.shape), one) for one, size in found]

        def execute():
            with torch.set_grad_enabled(backward):
                for x, weight, one in all:
                    y = F.conv2d(x, weight, None, one.stride, one.padding, 1, one.groups)
                    if backward:
                        torch.autograd.grad(y.sum(), (x, weight))

        return execute


MEMORY = (torch.contiguous_format, torch.channels_last)
