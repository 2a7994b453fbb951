"""Recipes: each file's `get_config` gives the config of one run, from `vit_jax.config.base_config`.

quickstart      scikit-learn's digits, minutes on a laptop
fashion_mnist   the first serious run: 70,000 real images
image_folder    a folder of your own images
vit_i1k         ImageNet-1k from scratch, any size, AugReg's levels
vit_s16_i1k     ImageNet-1k from scratch, a plain S/16 well trained
vit_i21k        ImageNet-21k pre-training as in AugReg
vit_g_scaling   one point of "Scaling Vision Transformers"
finetune        from any of the above to a smaller data set

Studies of many runs have a function `sweep`, too, for `python -m vit_jax.sweep`:

scaling/data_x_params   models x data sizes x durations: the study
scaling/shape_star      width, depth and MLP, one at a time
scaling/isoflop         the best model for each of several compute budgets
scaling/vit_vs_cnn      ViT, hybrid and ResNet on ever smaller parts of a data set
"""
