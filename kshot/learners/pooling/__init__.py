"""Learners for groups that share much: partial pooling, and boosting with an adapter."""
