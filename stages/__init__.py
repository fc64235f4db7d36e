"""The pipeline's stages, one module each, and the packages that they share."""
