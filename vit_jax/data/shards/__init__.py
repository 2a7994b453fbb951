"""Files that hold many examples, read by position.

rows        tables: Arrow, Parquet, CSV and TSV files
tfrecord    TFRecord files, without TensorFlow
tar         tar files of WebDataset
index       where the examples are in files without an index of their own, kept between runs
labels      class names and class ids from labels
splits      which split a file belongs to, by its name; and slices of tables and shards
"""
