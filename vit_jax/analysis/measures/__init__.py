"""What a model has learned: each measure is a function that returns a result.

A measure takes a loaded model, and images that it streams over: its memory does not grow with
their number. Its result has arrays with named axes, a figure, a table and files.

result              the base class of results: arrays, figure, table, files
arguments           checks numbers that a user gives
classes             the class that a user names, by number or name
images              what a user calls images -> a stream of prepared batches
encoder             the model in the form that is measured; visits each block of a forward pass
bootstrap           means over images with intervals, in constant memory
registry            the measures of `vit-jax analyze`
attention_distance  attention distance, entropy, and the share of attention on prefix tokens
embedding_filters   principal components of the filters of the patch embedding
position_similarity similarity of the positions of patches: embeddings, rotary angles
position_structure  such similarities in numbers: distance, rows and columns, neighbours
token_norms         norms of tokens before the final norm, and outliers among patches
registers           moves outliers to a register that was not trained
branch_norms        norms of the residual stream relative to what each branch adds
layer_similarity    centred kernel alignment between the layers of one or two models
gram_matrices       Gram matrices of the layers over minibatches
hsic                HSIC and CKA, from Gram matrices
layer_probes        accuracy of a linear probe on each layer
attention_maps      the attention of one image, from a query of choice
explanations        what a model looked at in an image, by several methods
faithfulness        deletion and insertion curves of these methods over images
explanation_maps    attention, rollout, relevance, Grad-CAM on the device
deletion            the probability of a class as patches are removed
readout             the tokens that a head reads
heat_maps           draws maps over an image
patch_tokens        the features of patches, of any kind of model
pictures            draws images and maps of their patches
feature_pca         patch features on their first three principal components, as colours
patch_similarity    cosine of the features of a patch with those of all patches
nearest_images      nearest neighbours of images by their features, agreement of labels
"""
