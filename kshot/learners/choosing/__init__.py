"""Choosing among plans: a selector fitted to what plans lost on earlier instances."""
