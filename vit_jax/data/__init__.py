"""Images in, batches out. The way of an example, file by file:

sources         open a data set by its config: `open_source`
  base            what every source is, and split slices such as train[:90%]
  digits, fashion_mnist, tfds_source, image_folder, files    one source each
  subset          some classes, a few examples of each: of any source
  reading         a file's bytes, whatever has taken its place
order           which examples are in the batch of step t: `locate`
decode          encoded bytes of any kind -> pixels
transforms      crop, flip, normalise, ... as plain config data: `build`, `OPS`
  op              what a transform is
  geometry, resample, color, randaugment    the transforms
  recipes         published ones, put together
pipeline        global batches on the mesh: `train_batches`, `eval_batches`
  batches         their iterator: from blocks to devices, ahead of time
  blocks          the part that runs in threads and worker processes
  bad_examples    the report of what was skipped
mixing          Mixup and CutMix, inside of the jitted step: `mix`
"""
