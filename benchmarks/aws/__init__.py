"""Figures on a simulated AWS, against dask-kubernetes and against less of ourselves: ``make bench-aws``."""

import benchmarks.kubernetes  # noqa: F401 - with it the tests' own modules are found
