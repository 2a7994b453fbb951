"""Training: the run, and its parts.

run              `train`: the whole story, from a config to its last checkpoint
experiment       the data, model, evaluations and jitted programs that a config defines
evaluations      the evaluations of a config
analysis_evaluation  the evaluation type "analysis": measures of what the model has learned
final_similarity  how similar the states that were evaluated are to the final one
observer         reports, evaluates and saves a run, in the order of the contract
state            the training state: its initial value, its shardings, its restore
update           one update of the state: forward, backward, optimizer, moving average
memory           estimates the memory of a run on a device
mesh_choice      chooses over how many devices parameters are split, by that memory
rematerialisation  chooses what the backward pass recomputes, by that memory
parts            the parts in which one CPU computes a batch
periods          how often a run saves and evaluates
init_from        takes model, preprocessing and parameters from a checkpoint
cached_features  trains the head alone, on features that are computed once
reports          messages of a run: at its start, at its end, and when it diverges
"""
