"""One file a family of pipelines; see `restoration.tune.denoiser`."""
