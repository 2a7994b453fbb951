"""Measures train steps and forward passes, ours and those of other libraries.

run           the whole benchmark, top to bottom: begin there
case          what is measured: model, batch, dtype, mesh, settings
contenders    one for each code base: prepare, train, outputs, forward
  ours          our train step and our inference
  flax_peer     a plain Flax ViT, unrolled
  torch_peers   transformers and timm
inputs        the same batch for all of them; weights: the same parameters
common        keeps parameters and references for several measurements
matmul        the peak of the device's matrix products
memory        peak memory of a process or a device
worker        a process of one contender; process: its side in the command
turns         interleaved turns of several workers
verdict       compares losses and outputs with those of the reference
samples       medians, ranges and ratios
result        what was measured, as JSON; table: for the terminal
sweep         combinations of settings, compared or one after another
trace         device time of a step by kind of operation; hlo: what the compiled program says
profiled_step both, and the largest arrays; profile: in a process of its own
"""
