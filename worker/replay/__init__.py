"""Sends failed jobs again: makes their messages, checks them against today's code, and runs replays to their end."""
