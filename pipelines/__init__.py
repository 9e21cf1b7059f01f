"""The stages: one module a stage, one word for it everywhere (module, DVC stage, params section, results folder)."""
