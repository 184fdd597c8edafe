"""Sends failed jobs again, as a closed loop: claimed, sent once, and closed by their own success."""
