"""The forms in which reference sets leave: each module writes one, from the same rows.

A set on its way out is a dict of the columns of `parquet.columns`; its pictures are {"bytes": encoded, "path": name}.
"""
