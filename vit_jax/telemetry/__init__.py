"""Telemetry: metrics, timings and progress of a run.

writers      metrics.jsonl, timing.jsonl, TensorBoard, Weights & Biases
jsonlines    files with a JSON object per line that survive kill -9 and resume
growing      append-only files, on a disk or in an object store
tensorboard  event files
progress     a progress bar on a terminal, plain lines elsewhere
clock        wall time by span: img/s, goodput, MFU, device-hours
notes        warnings, as plain lines
chips        peak, memory and bandwidth by kind of device
profiler     a trace of chosen steps

Nothing here initialises JAX's devices: callers pass the number of devices, and whether this process
writes.
"""

from vit_jax.telemetry.chips import peak_flops
from vit_jax.telemetry.clock import SPANS, Clock
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
