"""The passes of a pipeline, one file each; installed as `onnxprune.passes`."""
