"""One reader per file. To add one, also add its name to `DATASETS` in `data/dataset.py`."""
