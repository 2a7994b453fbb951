"""vit_jax: train Vision Transformers, adapt published ones, and measure how they scale."""

__version__ = "0.2.0"
