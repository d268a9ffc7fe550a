"""Scripts: start runs and the development cluster, check a machine's GPUs, demonstrate out-of-memory errors."""
