"""What tests of several folders need; import it as `support.…`."""
