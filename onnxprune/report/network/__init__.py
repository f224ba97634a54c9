"""The picture of the network: find its layers, fold repeats, lay out and draw as SVG."""
