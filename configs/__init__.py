"""Recipes: `get_config` of each file changes `vit_jax.config.base_config` into the config of a run.

quickstart      scikit-learn's digits, minutes on a laptop
fashion_mnist   a first larger run: 70,000 real images
image_folder    a folder of your own images
vit_i1k         ImageNet-1k from scratch, any size, AugReg's levels
vit_s16_i1k     ImageNet-1k from scratch, S/16, an improved baseline
vit_i21k        ImageNet-21k pre-training as in AugReg
vit_g_scaling   one point of "Scaling Vision Transformers"
finetune        from any of the above to a smaller data set

Studies of many runs also define `sweep`, for `vit-jax sweep`:

scaling/data_x_params   models x data sizes x durations, our own study
scaling/shape_star      width, depth and MLP, one at a time
scaling/isoflop         the best model for each of several compute budgets
scaling/vit_vs_cnn      ViT, hybrid and ResNet on nested parts of a data set
"""
