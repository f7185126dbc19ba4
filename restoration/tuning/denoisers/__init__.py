"""One file a family of pipelines; see `restoration.tuning.denoisers.base`."""
