"""Sources of rows and documents: files, data sets of the hub, synthetic stories, Megatron files."""
