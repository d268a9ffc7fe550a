"""What the checkpoints of a run write after fixed prompts, and how well they predict sealed samples."""
