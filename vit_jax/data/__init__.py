"""The data pipeline: from images to global batches, in the order of processing.

sources         opens a data set by its config: `open_source`
  base            the interface of a source, and split slices such as train[:90%]
  digits, fashion_mnist, tfds_source, image_folder, files    one source each
  table_source, hf_datasets, webdataset    sources in files with many examples
  shards          reads these files by position
  subset          subsets of any source: classes, few-shot, random
  held_out        train and test of data without splits of their own: `undivided_rows`
  layout          the splits and the size of a folder of images, for recipes
  listing         finds the images below a folder
  reading         reads a file, with bounds on its size and location
locate          from what a user points to, to the keys of `config.data`: `locate_data`
evaluated       the split of an evaluation: `open_split`
order           which examples are in the batch of step t: `examples_at`
  chunked_order   the two-level order: chunks, and examples within windows
  permutation     a permutation of a range, at single indices
decode          encoded images -> pixels
decoded_cache   keeps decoded images for later epochs: `open_cache`
  pixel_files     the files of such images in a folder
regions         a box of an image -> pixels, decoding only what it needs: `decode_region`
  turbojpeg     TurboJPEG 3, which decodes boxes, if it is installed
transforms      crop, flip, normalise, ... as plain config data: `compose`, `OPS`
  op              base class of a transform
  geometry, resample, color, randaugment    the transforms
  decoded_crop    decode and random_resized_crop as one operation
  simd_resize     resizing by SIMD, if it is installed
  recipes         published sequences of transforms
  inherit         transforms taken from the checkpoint of `init_from`
pipeline        global batches on the mesh: `train_batches`, `eval_batches`
  batches         their iterator: prefetches blocks and transfers them to the devices
  batch_memory    memory of batches, used again
  blocks          loads examples in threads and worker processes
  chunk_cache     reads whole chunks for the two-level order
  headers         finds broken files before a run begins: `check_headers`
  bad_examples    the report of skipped examples
mixing          Mixup and CutMix, inside the jitted step: `mix`
"""
