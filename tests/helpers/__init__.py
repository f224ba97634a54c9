"""What tests share: networks, oracles, readers, drivers."""
