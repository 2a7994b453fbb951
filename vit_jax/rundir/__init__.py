"""A run's work directory: the files that say what the run is, and who may write there.

workdir    names of the files; config.json, dataset.json and the other descriptions of a run
lock       one run at a time in a local work directory
lease      the same in an object store
agreement  the processes of a run have one config, data and work directory
"""
