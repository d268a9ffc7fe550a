"""Shell scripts that start runs and the development cluster, and the check of a machine's GPUs."""
