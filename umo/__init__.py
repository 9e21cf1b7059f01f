"""umo: matching rewards for multi-identity image customization, and the evaluation that proves them.

Knows nothing of DVC, Prefect or the pipeline's folders; `pipelines` imports `umo`, never the reverse.
"""

__version__ = "0.1.0"
