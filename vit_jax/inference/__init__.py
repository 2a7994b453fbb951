"""Any trained or published model on any images.

evaluate        evaluates a checkpoint on labelled images: the story, top to bottom
predict         predicts the classes of images, or computes their features
model           loads a run or a published checkpoint, with its preprocessing
task            a model and its examples, with what is collected on the way
class_matching  finds the model's outputs for the classes of the data, by name
classifier      evaluates a classifier, over all outputs and over the matched ones
features        evaluates features: kNN, few-shot regression, linear probe
evaluation      the results of an evaluation
results         writes them: JSON, figures, and a table for the terminal
outputs         writes predictions and features while they are computed
folders         names of the folders of results
progress        shows the number of images that are done
throughput      images per second
"""
