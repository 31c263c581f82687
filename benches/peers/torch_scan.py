"""The PyTorch peer of gatekit-bench: what a PyTorch user has on a CPU.

* gla: chunked matrix products, written here
* gated-delta-rule: transformers' own PyTorch fallback
* kda: flash-linear-attention's PyTorch form
* softmax: PyTorch's scaled dot product attention
* moe-layer: transformers' Qwen3-MoE block, an expert at a time or as one grouped product, whichever is faster here
* dense-swiglu: a SwiGLU layer
* pacgnet: the detector of `torch_pacgnet.py`, in the memory layout that is faster here, at inference with and without its
  normalisations folded into the convolutions

Needs: pip install torch transformers flash-linear-attention einops
"""

import time
import warnings

warnings.filterwarnings("ignore")

import torch
import torch.nn.functional as F

import torch_pacgnet
from worker import EXPERTS_PER_TOKEN, Case, Worker

CHUNK = 64
# Blocks of this many steps are combined element by element, larger ones by matrix products.
BLOCK = 8


def gla(q, k, v, log_decay):
    """Gated linear attention over [batch, time, heads, dim]; time is a multiple of CHUNK.

    Within a chunk the pairs of steps are split by halving: rows of a second half meet columns of
    the first half in one product, both decayed to the border between them, so that no exponent
    is above 0. All blocks of one size are one batched product.
    """
    batch, time, heads, dim = q.shape
    chunks = time // CHUNK

    def chunked(x):
        return x.transpose(1, 2).reshape(batch, heads, chunks, CHUNK, -1)

    q, k, v, log_decay = chunked(q * dim**-0.5), chunked(k), chunked(v), chunked(log_decay)
    decay = log_decay.cumsum(-2)
    last = decay[..., -1:, :]

    # The state before every chunk.
    written = (k * (last - decay).exp()).transpose(-1, -2) @ v
    kept = last.exp().transpose(-1, -2)
    state, states = torch.zeros_like(written[:, :, 0]), []
    for write, keep in zip(written.unbind(2), kept.unbind(2)):
        states.append(state)
        state = torch.addcmul(write, state, keep)
    output = (q * decay.exp()) @ torch.stack(states, 2)

    # Within blocks, element by element.
    def blocks(x, size):
        return x.unflatten(-2, (-1, size))

    qb, kb, gb = blocks(q, BLOCK), blocks(k, BLOCK), blocks(decay, BLOCK)
    pairs = (gb.unsqueeze(-2) - gb.unsqueeze(-3)).clamp(max=0).exp()
    scores = (qb.unsqueeze(-2) * kb.unsqueeze(-3) * pairs).sum(-1).tril()
    local = (scores @ blocks(v, BLOCK)).flatten(-3, -2)

    # Between the halves of blocks of growing size.
    size = BLOCK
    while size < CHUNK:
        halves = [x.unflatten(-2, (-1, 2, size)) for x in (q, k, v, decay)]
        qh, kh, vh, gh = (x[..., half, :, :] for x, half in zip(halves, (1, 0, 0, 0)))
        border = gh[..., -1:, :]
        scores = (qh * (halves[3][..., 1, :, :] - border).exp()) @ (kh * (border - gh).exp()).transpose(-1, -2)
        below = F.pad((scores @ vh).unsqueeze(-3), (0, 0, 0, 0, 1, 0))
        local = local + below.flatten(-4, -2)
        size *= 2

    output = output + local
    return output.reshape(batch, heads, time, -1).transpose(1, 2)


def gla_step(inputs, state):
    state = torch.addcmul(inputs["k"].unsqueeze(-1) * inputs["v"].unsqueeze(-2), state, inputs["log_decay"].exp().unsqueeze(-1))
    return read(inputs["q"], state), state


def delta_step(inputs, state):
    gate = inputs["log_decay"].exp()
    state = state * (gate if gate.dim() == 3 else gate.unsqueeze(-1)).unsqueeze(-1)
    held = (inputs["k"].unsqueeze(-2) @ state).squeeze(-2)
    new = inputs["beta"].unsqueeze(-1) * (inputs["v"] - held)
    state = torch.addcmul(state, inputs["k"].unsqueeze(-1), new.unsqueeze(-2))
    return read(inputs["q"], state), state


def read(q, state):
    return (q.unsqueeze(-2) @ state).squeeze(-2) * q.shape[-1] ** -0.5


def dense_swiglu(x):
    gate, up = x["gate_up"].chunk(2)
    return F.linear(F.silu(F.linear(x["x"], gate)) * F.linear(x["x"], up), x["down"])


class QwenBlock:
    """transformers' block with given weights, in the form that is faster for a shape and pass."""

    FORMS = ("eager", "grouped_mm")

    def __init__(self):
        from transformers.models.qwen3_moe import configuration_qwen3_moe, modeling_qwen3_moe

        self.config = configuration_qwen3_moe.Qwen3MoeConfig
        self.block = modeling_qwen3_moe.Qwen3MoeSparseMoeBlock
        self.chosen = {}

    def __call__(self, x):
        key = (x["x"].shape, x["router"].shape, x["x"].requires_grad and torch.is_grad_enabled())
        if key not in self.chosen:
            timed = {}
            for form in self.FORMS:
                try:
                    block = self.build(form, x)
                    self.once(block, x)
                    start = time.perf_counter()
                    self.once(block, x)
                    timed[form] = (time.perf_counter() - start, block)
                except RuntimeError:
                    continue
            self.chosen[key] = min(timed.values(), key=lambda entry: entry[0])[1]
        return self.run(self.chosen[key], x)

    def build(self, form, x):
        experts, double, width = x["gate_up"].shape
        config = self.config(
            hidden_size=width,
            moe_intermediate_size=double // 2,
            num_experts=experts,
            num_experts_per_tok=min(experts, EXPERTS_PER_TOKEN),
            norm_topk_prob=True,
        )
        config._experts_implementation = form
        return self.block(config)

    def run(self, block, x):
        weights = {"gate.weight": x["router"], "experts.gate_up_proj": x["gate_up"], "experts.down_proj": x["down"]}
        output = torch.func.functional_call(block, weights, (x["x"],))
        return output[0] if isinstance(output, tuple) else output

    def once(self, block, x):
        output = self.run(block, x)
        if output.requires_grad:
            torch.autograd.grad(output.sum(), [value for value in x.values() if value.requires_grad])


def cases():
    yield Case("gla", "PyTorch, chunked", lambda x: gla(x["q"], x["k"], x["v"], x["log_decay"]), gla_step)
    try:
        from transformers.models.qwen3_next import modeling_qwen3_next

        gated_delta_rule = modeling_qwen3_next.torch_chunk_gated_delta_rule
        # The library may route the call to a GPU kernel: this is its PyTorch code.
        gated_delta_rule = getattr(gated_delta_rule, "__wrapped__", gated_delta_rule)

        def run(x):
            return gated_delta_rule(x["q"], x["k"], x["v"], x["log_decay"], x["beta"], chunk_size=CHUNK)[0]

        yield Case("gated-delta-rule", "transformers", run, delta_step)
    except ImportError as error:
        warn("gated-delta-rule", error)
    try:
        from fla.ops.kda.naive import naive_chunk_kda

        yield Case(
            "kda",
            "fla, PyTorch",
            lambda x: naive_chunk_kda(x["q"], x["k"], x["v"], x["log_decay"], x["beta"])[0],
            delta_step,
        )
    except ImportError as error:
        warn("kda", error)

    yield Case("dense-swiglu", "PyTorch", dense_swiglu)
    try:
        yield Case("moe-layer", "transformers, Qwen3-MoE", QwenBlock())
    except ImportError as error:
        warn("moe-layer", error)

    yield torch_pacgnet.Network()
    yield torch_pacgnet.Convolutions()

    def attention(x):
        heads_first = (x[name].transpose(1, 2) for name in "qkv")
        return F.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(1, 2)

    yield Case("softmax", "PyTorch SDPA", attention)


def warn(op, error):
    import sys

    print(f"torch_scan.py: no {op}: {error}", file=sys.stderr)


if __name__ == "__main__":
    Worker(list(cases()), "cpu", {"f32": torch.float32}).serve(torch.__version__)
