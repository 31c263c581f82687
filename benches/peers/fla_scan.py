"""The flash-linear-attention peer of gatekit-bench: its Triton kernels on a CUDA device.

Needs a CUDA device, and: pip install torch triton flash-linear-attention einops
"""

import warnings

warnings.filterwarnings("ignore")

import fla
import torch
from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from fla.ops.gla import chunk_gla, fused_recurrent_gla
from fla.ops.kda import chunk_kda, fused_recurrent_kda

from worker import Case, Worker

FORM = "fla, Triton"


def gated(operation, x, **arguments):
    gates = {"g": x["log_decay"]} | ({"beta": x["beta"]} if "beta" in x else {})
    return operation(x["q"], x["k"], x["v"], **gates, **arguments)


def step(operation):
    """One token of a recurrent kernel; the inputs come without a time axis."""

    def run(x, state):
        x = {name: value.unsqueeze(1) for name, value in x.items()}
        return gated(operation, x, initial_state=state, output_final_state=True)

    return run


def cases():
    yield Case("gla", FORM, lambda x: gated(chunk_gla, x)[0], gla_step())
    yield Case(
        "gated-delta-rule",
        FORM,
        lambda x: gated(chunk_gated_delta_rule, x)[0],
        step(fused_recurrent_gated_delta_rule),
    )
    yield Case("kda", FORM, lambda x: gated(chunk_kda, x)[0], step(fused_recurrent_kda))


def gla_step():
    return step(lambda q, k, v, g, **arguments: fused_recurrent_gla(q, k, v, gk=g, **arguments))


if __name__ == "__main__":
    if not torch.cuda.is_available():
        raise SystemExit("fla_scan.py: PyTorch sees no CUDA device")
    dtypes = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    Worker(list(cases()), "cuda", dtypes).serve(f"{fla.__version__}, PyTorch {torch.__version__}")
