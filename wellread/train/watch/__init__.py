"""Display and logging of a run: progress lines, trackers such as TensorBoard, throughput."""
