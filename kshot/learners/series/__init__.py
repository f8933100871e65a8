"""Forecasts of series: the past that a task shows, the classical methods, and learners that combine them."""
