"""Membership: read samples compared with sealed ones."""
