"""One reader per file; `data/dataset.py` lists them."""
