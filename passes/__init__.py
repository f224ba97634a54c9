"""The passes a pruning pipeline is made of, one file each (importable as ``onnxprune.passes``)."""
