"""Examples, who reads what, prompts and batches."""
