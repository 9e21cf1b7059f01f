"""Training a customizer's LoRA: SFT and ReReFL (arXiv 2509.06818) on accelerate.

`recipe` says how, `samples` what on, `rerefl` is Algorithm 1, `trainer` the run around it, `checkpoints` its memory.
Nothing is imported here: a recipe is read where nothing is trained.
"""
