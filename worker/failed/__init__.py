"""Failed jobs for people: what they ask for, and what a job's page says, in a terminal and in a browser."""
