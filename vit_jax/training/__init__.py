"""What `vit_jax.train` is made of.

experiment       all that follows from a config: data, model, evaluations; the jitted programs
observer         reports on a run, evaluates and saves it, in the order of the contract
state            the state of a run: made, laid out on the mesh, restored
update           one update of the state: forward, backward, optimizer, average
init_from        what a run takes from the checkpoint that it starts from
cached_features  trains the head alone, on features that are computed once
reports          what a run says of itself: before, after, and when it diverges
"""
