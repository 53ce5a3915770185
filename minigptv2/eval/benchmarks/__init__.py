"""One benchmark a file; `eval/benchmark.py` names them all."""
