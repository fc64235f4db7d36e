"""The pipeline's stages: one module per stage in `dvc.yaml`, and the nouns that they share."""
