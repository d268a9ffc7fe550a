"""Code that tests of several folders use; import it as `support.…`."""
