"""What a run shows while it trains: lines, TensorBoard, throughput."""
