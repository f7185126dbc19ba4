"""One file per family of pipelines; see `restoration.tuning.denoisers.base`."""
