"""Many photographs with one command: on this machine, on a Ray cluster, or by a model on Replicate."""
