"""One reader a file; `data/dataset.py` names them all."""
