"""Data: sources of rows and documents, how rows become samples, and the data sets that ``--data`` names."""
