"""Telemetry: what a run says about itself, and what it costs.

writers      metrics.jsonl, timing.jsonl, TensorBoard, Weights & Biases
jsonlines    files of one JSON object a line that survive kill -9 and resume
growing      what they are written to, on a disk or in an object store
tensorboard  event files
progress     a bar on a terminal, plain lines elsewhere
clock        where the time went: img/s, goodput, MFU, device-hours
devices      peak FLOP/s by kind of device
profiler     a trace of chosen steps

Nothing here starts a device: whether this process is the one that writes, and how many devices
there are, is passed in.
"""

from vit_jax.telemetry.clock import SPANS, Clock
from vit_jax.telemetry.devices import peak_flops
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.telemetry.profiler import StepProfiler
from vit_jax.telemetry.progress import Progress, format_duration
from vit_jax.telemetry.writers import MetricWriter

__all__ = [
    "SPANS",
    "Clock",
    "MetricWriter",
    "Progress",
    "StepProfiler",
    "format_duration",
    "peak_flops",
    "read_jsonl",
]
