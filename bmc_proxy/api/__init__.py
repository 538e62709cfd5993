"""HTTP: the site with its limits, one file per dialect, and the one map from errors to HTTP."""
