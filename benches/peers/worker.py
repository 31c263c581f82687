"""What the PyTorch peers of gatekit-bench share: the protocol, the inputs, and how one is timed.

A worker lives for a whole report, so that its runs alternate with the report's own. It writes one
line when it is ready, then answers one JSON object a line with one a line:

    {"ready": {"version", "device", "dtypes", "cases": [{"op", "form", "passes"}, ..]}}

    {"do": "time", "op", "shape": [B, T, H, K, V], "pass", "dtype", "threads", "seed", "repeats"}
        -> {"seconds": the mean of so many executions}      (the first request of a case warms up)
    {"do": "run", "op", "shape", "pass": "forward", .., "inputs": {"q": [..], ..}}
        -> {"output": [..]}                                 (for comparing results)

    any -> {"error": why not}
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Callable

import torch
import torch.nn.functional as F


# Layers of `heads` experts of inner width `value_dim`, over tokens of width `key_dim`.
FEED_FORWARD = ("moe-layer", "dense-swiglu")
EXPERTS_PER_TOKEN = 8


@dataclass
class Case:
    """An op this peer has: `run(inputs)` computes the output, `step(inputs, state)` one token.

    A case may be of another class with `op`, `form` and `passes()` that makes its own inputs: `prepare(request)` is a
    function that executes it once, `compare(request)` the output for given inputs.
    """

    op: str
    form: str
    run: Callable
    step: Callable | None = None

    def passes(self):
        return ["forward", "forward+backward"] + (["decode"] if self.step else [])


def shapes(op, batch, time, heads, key_dim, value_dim):
    """The inputs of an op, by name."""
    if op in FEED_FORWARD:
        inner = min(heads, EXPERTS_PER_TOKEN) * value_dim
        dense = {"x": (batch, time, key_dim), "gate_up": (2 * inner, key_dim), "down": (key_dim, inner)}
        experts = {
            "x": (batch, time, key_dim),
            "router": (heads, key_dim),
            "gate_up": (heads, 2 * value_dim, key_dim),
            "down": (heads, key_dim, value_dim),
        }
        return dense if op == "dense-swiglu" else experts
    keys = (batch, time, heads, key_dim)
    inputs = {"q": keys, "k": keys, "v": (batch, time, heads, value_dim)}
    if op in ("gla", "kda"):
        inputs["log_decay"] = keys
    if op == "gated-delta-rule":
        inputs["log_decay"] = keys[:3]
    if op in ("gated-delta-rule", "kda", "delta-rule"):
        inputs["beta"] = keys[:3]
    return inputs


def draw(op, shape, dtype, device, seed):
    """Random inputs as the report draws them: unit queries and keys, mild decays in float32."""
    generator = torch.Generator(device).manual_seed(seed)
    inputs = {}
    for name, size in shapes(op, *shape).items():
        if op in FEED_FORWARD:
            values = torch.randn(size, generator=generator, device=device)
            values = (values if name == "x" else 0.02 * values).to(dtype)
        elif name == "beta":
            values = torch.rand(size, generator=generator, device=device).to(dtype)
        else:
            values = torch.randn(size, generator=generator, device=device)
            if name == "log_decay":
                values = F.logsigmoid(values) / (16 if len(size) == 4 else 1)
            else:
                values = (values if name == "v" else F.normalize(values, dim=-1)).to(dtype)
        inputs[name] = values
    return inputs


class Worker:
    def __init__(self, cases, device, dtypes):
        self.cases = {case.op: case for case in cases}
        self.device = device
        self.dtypes = dtypes
        self.key, self.execute = None, None

    def serve(self, version):
        # What libraries print must not get between the answers.
        answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
        os.dup2(2, 1)
        cases = [{"op": case.op, "form": case.form, "passes": case.passes()} for case in self.cases.values()]
        name = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        ready = {"version": version, "device": name, "dtypes": list(self.dtypes), "cases": cases}
        print(json.dumps({"ready": ready}), file=answers, flush=True)
        for line in sys.stdin:
            try:
                answer = self.answer(json.loads(line))
            except Exception as error:  # whatever a library raises is an answer
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)

    def answer(self, request):
        key = tuple(str(request[field]) for field in ("do", "op", "shape", "pass", "dtype", "threads", "seed"))
        if request["threads"]:
            torch.set_num_threads(request["threads"])
        if request["do"] == "run":
            return {"output": self.compare(request)}
        if key != self.key:
            # The last case's tensors go before the next ones come.
            self.key, self.execute = None, None
            self.execute = self.prepare(request)
            self.execute()
            self.synchronize()
            self.key = key
        start = time.perf_counter()
        for _ in range(request["repeats"]):
            self.execute()
        self.synchronize()
        return {"seconds": (time.perf_counter() - start) / request["repeats"]}

    def prepare(self, request):
        """One execution of a case, as a function."""
        op, wanted = request["op"], request["pass"]
        dtype = self.dtypes[request["dtype"]]
        if op == "matmul":
            return self.matmul(request["shape"], dtype)
        case = self.cases[op]
        if not isinstance(case, Case):
            return case.prepare(request)
        shape = list(request["shape"])
        if wanted == "decode":
            return self.decode(case, shape, dtype, request["seed"])
        inputs = draw(op, shape, dtype, self.device, request["seed"])
        if wanted == "forward":

            def forward():
                with torch.no_grad():
                    case.run(inputs)

            return forward
        leaves = {name: value.requires_grad_() for name, value in inputs.items()}

        def forward_backward():
            torch.autograd.grad(case.run(leaves).sum(), list(leaves.values()))

        return forward_backward

    def decode(self, case, shape, dtype, seed):
        shape[1] = 1
        inputs = {name: value[:, 0] for name, value in draw(case.op, shape, dtype, self.device, seed).items()}
        batch, _, heads, key_dim, value_dim = shape
        state = torch.zeros(batch, heads, key_dim, value_dim, device=self.device)

        def step():
            nonlocal state
            with torch.no_grad():
                _, state = case.step(inputs, state)

        return step

    def matmul(self, shape, dtype):
        left, right = (torch.randn(shape[1], shape[1], device=self.device).to(dtype) for _ in range(2))
        return lambda: left @ right

    def compare(self, request):
        case = self.cases[request["op"]]
        if not isinstance(case, Case):
            return case.compare(request)
        dtype = self.dtypes[request["dtype"]]
        inputs = {}
        for name, size in shapes(request["op"], *request["shape"]).items():
            values = torch.tensor(request["inputs"][name], device=self.device).reshape(size)
            inputs[name] = values if name == "log_decay" else values.to(dtype)
        with torch.no_grad():
            return case.run(inputs).float().flatten().tolist()

    def synchronize(self):
        if self.device == "cuda":
            torch.cuda.synchronize()
