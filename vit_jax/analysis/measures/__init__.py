"""What a model has learned: each measure is a function that returns a result.

A measure takes a loaded model, and images that it streams over: its memory does not grow with
their number. Its result has arrays with named axes, a figure, a table and files.

result              the base class of results: arrays, figure, table, files
images              what a user calls images -> a stream of prepared batches
encoder             the model in the form that is measured; visits each block of a forward pass
bootstrap           means over images with intervals, in constant memory
attention_distance  attention distance, entropy, and the share of attention on prefix tokens
attention_maps      the attention of one image, from a query of choice
explanations        what a model looked at in an image, by several methods
faithfulness        deletion and insertion curves of these methods over images
explanation_maps    attention, rollout, relevance, Grad-CAM on the device
deletion            the probability of a class as patches are removed
readout             the tokens that a head reads
heat_maps           draws maps over an image
"""
