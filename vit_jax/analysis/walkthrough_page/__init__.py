"""One image through a model, step by step, as one HTML page.

The folder has another name than the function `analysis.walkthrough`, which it would hide.

walkthrough      the function and its result
trace            the forward pass: every array that is shown
arithmetic       norms and dense layers in NumPy, for what the model does not return
page             puts the steps into the page; page.css and page.js are its style and its script
step             what the functions that write the steps share
input_steps      from the image to the first block's input
attention_steps  attention of one block
mlp_steps        residual connections and MLP of the block; all layers
output_steps     from the last block to the loss
elements         numbers, tables, shapes and formulas as HTML
drawing          images, maps and charts
"""
