"""Training a customizer's LoRA: SFT and ReReFL (arXiv 2509.06818) on accelerate.

`recipe` says how, `samples` what on; `objectives` are what pulls, `trainer` is the loop, `run` all of it.
Nothing is imported here: a recipe is read where nothing is trained.
"""
