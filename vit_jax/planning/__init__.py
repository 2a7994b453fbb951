"""Plans a run for devices that are not here; begin at `plan.make_plan`.

topology (the devices), data_size (classes and examples), step (the train step of `vit-jax train`,
compiled for them), hlo (the program's text), collectives, kept (activations), traffic (HBM), flops,
roofline (seconds), formula (the same without a compiler), advice (what to change), remedies (what
would make a step fit), search (mesh and remat), report (text and JSON).
"""
