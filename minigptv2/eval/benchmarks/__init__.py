"""One benchmark per file. To add one, also add its name to `BENCHMARKS` in `eval/benchmark.py`."""
