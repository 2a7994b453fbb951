"""The inputs of laws and the columns that hold them; imports no JAX."""

# Default columns for the inputs of a law, in tables by `vit_jax.sweeps.table`.
COLUMNS = {
    "x": "total_train_flops",
    "n": "params",
    "d": "examples_seen",
    "u": "examples",
    "t": "total_train_flops",
}
