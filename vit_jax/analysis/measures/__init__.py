"""What a model has learned: each measure is a function that returns a result.

A measure takes a loaded model, and images that it streams over: its memory does not grow with
their number. Its result has arrays with named axes, a figure, a table and files.

result              the base class of results: arrays, figure, table, files
images              what a user calls images -> a stream of prepared batches
encoder             the model in the form that is measured; visits each block of a forward pass
bootstrap           means over images with intervals, in constant memory
registry            the measures of `vit-jax analyze`
attention_distance  attention distance, entropy, and the share of attention on prefix tokens
token_norms         norms of tokens before the final norm, and outliers among patches
registers           moves outliers to a register that was not trained
branch_norms        norms of the residual stream relative to what each branch adds
layer_similarity    centred kernel alignment between the layers of one or two models
layer_probes        accuracy of a linear probe on each layer
"""
