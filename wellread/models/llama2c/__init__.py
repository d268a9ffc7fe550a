"""llama2.c's file formats."""
