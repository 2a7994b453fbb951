"""A run's work directory: the files that describe the run, and the lock on it.

workdir    names of the files; config.json, dataset.json and the other descriptions of a run
lock       one run at a time in a local work directory
lease      one run at a time in an object store
failure    the error that ended a run
extension  continues a run with a larger length
agreement  checks that all processes of a run have the same config, data and work directory
"""
