"""Tells people elsewhere, by a webhook, that something new is wrong; see ``worker.housekeeping.look_for_alerts``.

What is there is held against what was told before, every few seconds, rather than told by whoever fails: a failing
job, its transaction and its worker know nothing of alerts, and nothing that happened while nobody looked is missed.
"""
